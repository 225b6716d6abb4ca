-- Gives a store its name, once, and says in which form it keeps workflows. Writes nothing where it has one, and does without
-- common.lua: high_water.rs has the story.
-- KEYS: store, revision. ARGV: a fresh name, our layout. One of the two keys without the other is for a person to look at.
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then
  local found = redis.call('HMGET', KEYS[1], 'identity', 'layout')
  return found[1] and found[2] ~= ARGV[2] and 'other-layout' or 'known'
end
redis.call('HSET', KEYS[1], 'identity', ARGV[1], 'layout', ARGV[2])
redis.call('SET', KEYS[2], '1')
return 'named'
