-- Compares what a witness remembers with what is there, and halts the store if something is missing. Does without common.lua,
-- which lets nothing through while the store is halted.
-- KEYS: store, revision, halt. ARGV: witness, then what it remembers: identity ('' for nothing yet), accepted, revision,
-- looks; who asks; which process of Redis this is.
local call = redis.call
local KEY_STORE, KEY_REVISION, KEY_HALT = KEYS[1], KEYS[2], KEYS[3]
local witness, identity, accepted, revision, looks = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local found = call('HMGET', KEY_STORE, 'identity', 'accepted', 'looks:' .. witness)
local there = call('GET', KEY_REVISION)
local found_looks = tonumber(found[3] or 0)

-- As `loss` in high_water.rs.
local function loss()
  if not found[1] or not there then return 'emptied' end
  if identity == '' then return nil end
  if found[1] ~= identity then return 'replaced' end
  local is_older = tonumber(there) < revision or found_looks < looks
  if tonumber(found[2] or 0) <= accepted and is_older then return 'older' end
end

-- Somebody else watches it, too, and may remember more than one who remembers nothing yet.
local function others_watch()
  for _, field in ipairs(call('HKEYS', KEY_STORE)) do
    if string.sub(field, 1, 6) == 'looks:' and field ~= 'looks:' .. witness then return true end
  end
  return false
end

-- While the store is halted its revision has a minus: whoever writes looks there anyway.
local halted = there and string.byte(there) == 45
local what = not halted and loss()
if what then
  local time = call('TIME')
  call('SET', KEY_REVISION, '-' .. (there or '0'))
  call('HSET', KEY_HALT, 'since', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), 'by', ARGV[6], 'loss', what,
    'expected', ARGV[2], 'expected_revision', ARGV[4], 'expected_looks', ARGV[5],
    'found', found[1] or '', 'found_revision', there or '0', 'found_looks', found_looks)
elseif not halted then
  -- Each look writes, so that a store that can't be written to is noticed also while there is nothing to do.
  found_looks = call('HINCRBY', KEY_STORE, 'looks:' .. witness, 1)
  -- Whoever only writes to a store that was looked at goes by this (connection.rs).
  if identity ~= '' or not others_watch() then call('HSET', KEY_STORE, 'run', ARGV[7]) end
end
return { found[1], call('GET', KEY_REVISION), found[2], tostring(found_looks), call('HGETALL', KEY_HALT) }
