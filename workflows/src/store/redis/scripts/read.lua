-- Reads documents, each with what the schedule says about it. Writes nothing, and does without common.lua.
-- KEYS: due, lease. ARGV: prefix, ids.
local read = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local found = redis.call('HMGET', ARGV[1] .. ':wf:' .. id, 'kind', 'target', 'parent', 'status', 'headline', 'seq',
    'head', 'state', 'trace', 'created', 'updated', 'fence', 'worker')
  if found[6] then
    found[14] = redis.call('ZSCORE', KEYS[1], id)
    found[15] = redis.call('ZSCORE', KEYS[2], id)
    read[i - 1] = found
  else
    read[i - 1] = false
  end
end
return read
