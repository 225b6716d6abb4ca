-- Reads workflows, each with what the schedule says about it. Writes nothing, and does without common.lua.
-- KEYS: lease, heads, documents, states, holders. ARGV: prefix, ids (at most a page). Answers for each: head, document, state, when it is
-- due, until when it is leased, its holder; nil if there is no such workflow.
local ids = {}
for i = 2, #ARGV do ids[i - 1] = ARGV[i] end
if #ids == 0 then return {} end
local heads, documents = redis.call('HMGET', KEYS[2], unpack(ids)), redis.call('HMGET', KEYS[3], unpack(ids))
local states, holders = redis.call('HMGET', KEYS[4], unpack(ids)), redis.call('HMGET', KEYS[5], unpack(ids))
local read = {}
for i, id in ipairs(ids) do
  local head = heads[i]
  if head then
    -- As in common.lua; what is not of its form is told as it is.
    local ok, _, _, queue = pcall(struct.unpack, 'sss', head, 49)
    local due = ok and redis.call('ZSCORE', ARGV[1] .. ':due:' .. queue, id)
    read[i] = { head, documents[i], states[i], due, redis.call('ZSCORE', KEYS[1], id), holders[i] }
  else
    read[i] = false
  end
end
return read
