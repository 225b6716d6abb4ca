-- A person has looked: the halt is lifted, without gate.lua, which would refuse. Every lease granted before is void, every open
-- workflow is due, and every ledger of ticks is moved to now, because nobody knows which of the ticks have run.
-- In slices, so that a large store keeps nobody waiting: halted until the last one, and whoever is cut off in the middle begins anew.
local from, by, witness, fresh, identity, accepted, revision = number(), text(), text(), text(), text(), number(), number()
local KEY_STORE, KEY_HALT = PREFIX .. ':store', PREFIX .. ':halt:' .. LAYOUT

local there = call('GET', KEY_REVISION)
if there and string.byte(there) ~= 45 then return false end
there = math.abs(tonumber(there or 0))
local found = call('HMGET', KEY_STORE, 'identity', 'accepted', 'layout')
if found[1] and found[3] ~= LAYOUT then
  return redis.error_reply('OTHERLAYOUT another release of Turnaround keeps workflows here, in another form')
end

-- What can't be read was set aside, or will be. Nobody looks at what is set apart, unless it had mail, and so was leased.
local function all_due(ids, also_apart)
  load_heads(ids, 1, #ids)
  for _, id in ipairs(ids) do
    local seq, flags, queue = peek(id)
    if seq and band(flags, ENDED) == 0 and (also_apart or byte(raw[id], STATUS_AT) ~= QUARANTINED) then make_due_now(id, queue) end
  end
end

if from == 0 then
  local leased = call('ZRANGE', KEY_LEASE, 0, -1)
  load_holders(leased, 1, #leased)
  for _, id in ipairs(leased) do touch(id) end
  call('UNLINK', KEY_HOLDERS, KEY_LEASE)
  all_due(leased, true)
end
local open = call('ZRANGE', KEY_OPEN, from, from + SLICE - 1)
all_due(open, false)
if #open == SLICE then
  settle()
  return from + SLICE
end
-- It goes on under the name that is remembered: this is where that store is from now on. Later than any acceptance before, so
-- that every other witness sees that somebody has looked.
if identity == '' then identity = found[1] or fresh end
call('HSET', KEY_STORE, 'identity', identity, 'accepted', whole(math.max(now, accepted + 1, tonumber(found[2] or 0) + 1)), 'accepted_by', by, 'layout', LAYOUT)
call('SET', KEY_REVISION, whole(math.max(there, revision) + 1))
call('DEL', KEY_HALT)
for _, schedule in ipairs(call('HKEYS', KEY_TICKS)) do
  local judged = tonumber(call('HGET', KEY_TICKS, schedule)) or 0
  call('HSET', KEY_TICKS, schedule, whole(math.max(judged, now)))
end
settle()
found = call('HMGET', KEY_STORE, 'identity', 'accepted', 'looks:' .. witness)
return { found[1], call('GET', KEY_REVISION), found[2], found[3] or '0', {} }
