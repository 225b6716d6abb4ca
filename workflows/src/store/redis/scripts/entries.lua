-- Reads what single commits appended to journals, with what their workflow is. Writes nothing, and does without common.lua.
-- KEYS: documents, journal. ARGV: ids and places of first entries (from 1) in turn, at most 500 of them (EVENTS_PAGE_MAX). Answers a
-- document and entries for each, in one row. What is not there is nil.
if #ARGV == 0 then return {} end
local ids, names = {}, {}
for i = 1, #ARGV, 2 do
  ids[#ids + 1] = ARGV[i]
  names[#names + 1] = ARGV[i] .. ':' .. ARGV[i + 1]
end
local documents, entries = redis.call('HMGET', KEYS[1], unpack(ids)), redis.call('HMGET', KEYS[2], unpack(names))
local read = {}
for i = 1, #ids do read[2 * i - 1], read[2 * i] = documents[i], entries[i] end
return read
