-- Removes workflows whose time has passed, and all that names them: at most so many, and no more once so many entries went with
-- them.
local max, entries_max = number(), number()
local expired = call('ZRANGEBYSCORE', KEY_EXPIRY, '-inf', NOW, 'LIMIT', 0, max)
load_heads(expired, 1, #expired)
local gone, names = {}, {}
for i, id in ipairs(expired) do
  if #names >= entries_max then break end
  gone[i] = id
  local seq = peek(id)
  if seq then
    for at = 1, seq do names[#names + 1] = id .. ':' .. as_text(at) end
  else
    local at = 1
    while call('HEXISTS', KEY_JOURNAL, id .. ':' .. as_text(at)) == 1 do
      names[#names + 1] = id .. ':' .. as_text(at)
      at = at + 1
    end
  end
end
for from = 1, #gone, SLICE do
  local upto = math.min(from + SLICE - 1, #gone)
  for i, document in ipairs(call('HMGET', KEY_DOCUMENTS, unpack(gone, from, upto))) do
    local parent = document and match(document, '^[^%z]+')
    if parent then call('ZREM', children_key(parent), gone[from + i - 1]) end
  end
end
in_slices('HDEL', KEY_JOURNAL, names)
in_slices('HDEL', KEY_HEADS, gone)
in_slices('HDEL', KEY_DOCUMENTS, gone)
in_slices('HDEL', KEY_STATES, gone)
in_slices('ZREM', KEY_ENDED, gone)
in_slices('ZREM', KEY_EXPIRY, gone)
return #gone
