-- Reads how the store is. Writes nothing, and does without common.lua. KEYS: store, revision, halt.
local found = redis.call('HMGET', KEYS[1], 'identity', 'accepted')
return { found[1], redis.call('GET', KEYS[2]), found[2], '0', redis.call('HGETALL', KEYS[3]) }
