-- Before every script that writes: a store that has lost something takes no writes until a person has looked (high_water.rs).
-- Its revision is then below zero, or there is none. KEYS: the last one is the revision.
do
  local revision = redis.call('GET', KEYS[#KEYS])
  if not revision then return redis.error_reply('HALTED the store was emptied') end
  if string.byte(revision) == 45 then return redis.error_reply('HALTED the store has lost something') end
end
