-- Gives a store its name, once. Writes nothing where it has one, and does without common.lua: high_water.rs has the story.
-- KEYS: store, revision. ARGV: a fresh name. One of the two keys without the other is for a person to look at.
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then return 'known' end
redis.call('HSET', KEYS[1], 'identity', ARGV[1])
redis.call('SET', KEYS[2], '1')
return 'named'
