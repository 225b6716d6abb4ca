-- Reads single journal entries, with what their workflow is. Writes nothing, and does without common.lua.
-- ARGV: prefix, then ids and places (from 1) in turn. Answers kind, target and entry for each, in one row.
local read = {}
for i = 2, #ARGV, 2 do
  local key = ARGV[1] .. ':wf:' .. ARGV[i]
  local found = redis.call('HMGET', key, 'kind', 'target')
  local entry = redis.call('LINDEX', key .. ':journal', tonumber(ARGV[i + 1]) - 1)
  for _, text in ipairs({ found[1], found[2], entry }) do read[#read + 1] = text end
end
return read
