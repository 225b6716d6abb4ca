-- Reads documents, each with what the schedule says about it. Writes nothing, and does without common.lua.
-- KEYS: lease. ARGV: prefix, ids. What can't be read is answered as text.
local read = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local found = redis.pcall('HMGET', ARGV[1] .. ':wf:' .. id, 'kind', 'target', 'parent', 'status', 'headline', 'seq',
    'head', 'trace', 'created', 'updated', 'queue', 'state', 'fence', 'holder')
  if found.err then
    read[i - 1] = found.err
  elseif found[6] then
    found[15] = redis.call('ZSCORE', ARGV[1] .. ':due:' .. (found[11] or ''), id)
    found[16] = redis.call('ZSCORE', KEYS[1], id)
    read[i - 1] = found
  else
    read[i - 1] = false
  end
end
return read
