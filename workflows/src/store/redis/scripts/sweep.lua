-- Removes workflows whose time has passed, and all that names them: at most so many, and no more once so many entries went with
-- them.
local max, entries_max = number(), number()
local expired = call('ZRANGEBYSCORE', KEY_EXPIRY, '-inf', NOW, 'LIMIT', 0, max)
load_heads(expired, 1, #expired)
-- All that expired, and of those whose workflows are to go.
local swept, gone = {}, {}
-- Goes by what is there: what the head says of the number of entries may be wrong, and only saves looking for others. In how many places
-- there was something.
local function remove_journal(id, supposed)
  local from, slice = 1, supposed and math.min(supposed + 1, SLICE) or SLICE
  repeat
    local names = {}
    for at = from, from + slice - 1 do names[#names + 1] = id .. ':' .. whole(at) end
    local there = call('HDEL', KEY_JOURNAL, unpack(names))
    from = from + slice
  -- A commit has no more entries than a slice has places.
  until there == 0
  return from - 1 - slice
end
local entries = 0
for i, id in ipairs(expired) do
  if entries >= entries_max then break end
  swept[i] = id
  local seq, flags = peek(id)
  -- One that is open again, created anew after somebody removed it by hand, stays.
  if not seq or band(flags, ENDED) ~= 0 then
    gone[#gone + 1] = id
    -- After when it was created.
    local parent = match(sub(call('HGET', KEY_DOCUMENTS, id) or '', 9), '^[^%z]+')
    if parent then call('ZREM', children_key(parent), id) end
    entries = entries + remove_journal(id, seq)
  end
end
in_slices('HDEL', KEY_HEADS, gone)
in_slices('HDEL', KEY_DOCUMENTS, gone)
in_slices('HDEL', KEY_STATES, gone)
in_slices('HDEL', KEY_HOLDERS, gone)
in_slices('ZREM', KEY_ENDED, swept)
in_slices('ZREM', KEY_EXPIRY, swept)
return #swept
