-- A person has looked: the halt is lifted, without gate.lua, which would refuse. Every lease granted before is void, every open
-- workflow is due, and every ledger of ticks is moved to now, because nobody knows which of the ticks have run.
local by, witness, fresh, identity, accepted, revision = text(), text(), text(), text(), number(), number()
local KEY_STORE, KEY_HALT = PREFIX .. ':store', PREFIX .. ':halt:' .. LAYOUT

local there = call('GET', KEY_REVISION)
if there and string.byte(there) ~= 45 then return false end
there = math.abs(tonumber(there or 0))
local found = call('HMGET', KEY_STORE, 'identity', 'accepted', 'layout')
if found[1] and found[3] ~= LAYOUT then
  return redis.error_reply('OTHERLAYOUT another release of Turnaround keeps workflows here, in another form')
end
-- It goes on under the name that is remembered: this is where that store is from now on. Later than any acceptance before, so
-- that every other witness sees that somebody has looked.
if identity == '' then identity = found[1] or fresh end
call('HSET', KEY_STORE, 'identity', identity, 'accepted', whole(math.max(now, accepted + 1, tonumber(found[2] or 0) + 1)), 'accepted_by', by, 'layout', LAYOUT)
call('SET', KEY_REVISION, whole(math.max(there, revision) + 1))
call('DEL', KEY_HALT)

local leased = call('ZRANGE', KEY_LEASE, 0, -1)
load_holders(leased, 1, #leased)
local had = {}
for _, id in ipairs(leased) do
  touch(id)
  had[id] = true
end
call('UNLINK', KEY_HOLDERS, KEY_LEASE)
local open = call('ZRANGE', KEY_OPEN, 0, -1)
for from = 1, #open, SLICE do
  local upto = math.min(from + SLICE - 1, #open)
  load_heads(open, from, upto)
  for i = from, upto do
    -- What can't be read was set aside, or will be.
    local seq, _, queue = peek(open[i])
    -- One that is set apart was claimed because it had mail.
    if seq and (byte(raw[open[i]], STATUS_AT) ~= QUARANTINED or had[open[i]]) then make_due_now(open[i], queue) end
  end
  raw = {}
end
for _, schedule in ipairs(call('HKEYS', KEY_TICKS)) do
  local judged = tonumber(call('HGET', KEY_TICKS, schedule)) or 0
  call('HSET', KEY_TICKS, schedule, whole(math.max(judged, now)))
end
settle()
found = call('HMGET', KEY_STORE, 'identity', 'accepted', 'looks:' .. witness)
return { found[1], call('GET', KEY_REVISION), found[2], found[3] or '0', {} }
