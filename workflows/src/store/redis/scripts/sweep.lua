-- Removes workflows whose time has passed, and all that names them: at most so many, and no more once so many entries went with
-- them.
local max, entries_max = number(), number()
local expired = call('ZRANGEBYSCORE', KEY_EXPIRY, '-inf', NOW, 'LIMIT', 0, max)
load_heads(expired, 1, #expired)
-- All that expired, and of those whose workflows are to go.
local swept, gone = {}, {}
-- Goes by the entries that are there: what the head says of their number may be wrong, and only saves looking for others.
local function remove_journal(id, supposed)
  local removed, from, slice = 0, 1, math.min(supposed + 1, SLICE)
  repeat
    local names = {}
    for at = from, from + slice - 1 do names[#names + 1] = id .. ':' .. whole(at) end
    local there = call('HDEL', KEY_JOURNAL, unpack(names))
    removed, from = removed + there, from + slice
  until there == 0
  return removed
end
local entries = 0
for i, id in ipairs(expired) do
  if entries >= entries_max then break end
  swept[i] = id
  local seq, _, flags = peek(id)
  -- One that is open again, created anew after somebody removed it by hand, stays.
  if not seq or band(flags, ENDED) ~= 0 then
    gone[#gone + 1] = id
    local parent = match(call('HGET', KEY_DOCUMENTS, id) or '', '^[^%z]+')
    if parent then call('ZREM', children_key(parent), id) end
    entries = entries + remove_journal(id, seq or 0)
  end
end
in_slices('HDEL', KEY_HEADS, gone)
in_slices('HDEL', KEY_DOCUMENTS, gone)
in_slices('HDEL', KEY_STATES, gone)
in_slices('ZREM', KEY_ENDED, swept)
in_slices('ZREM', KEY_EXPIRY, swept)
return #swept
