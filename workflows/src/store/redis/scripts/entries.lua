-- Reads single journal entries, with what their workflow is. Writes nothing, and does without common.lua.
-- ARGV: prefix, then ids and places (from 1) in turn. Answers kind, target and entry for each, in one row. What can't be read is
-- as if it were gone.
local read = {}
for i = 2, #ARGV, 2 do
  local found = redis.pcall('HMGET', ARGV[1] .. ':wf:' .. ARGV[i], 'kind', 'target', 'e' .. ARGV[i + 1])
  for field = 1, 3 do read[#read + 1] = found[field] or false end
end
return read
