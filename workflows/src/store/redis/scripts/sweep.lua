-- Removes workflows whose time has passed, and all that names them.
local max, children_kept_ms = number(), text()
local expired = call('ZRANGEBYSCORE', KEY_EXPIRY, '-inf', NOW, 'LIMIT', 0, max)
for _, id in ipairs(expired) do
  local parent = call('HGET', workflow_key(id), 'parent')
  if parent then call('ZREM', children_key(parent), id) end
  call('UNLINK', workflow_key(id), journal_key(id), inbox_key(id), held_key(id))
  -- Its children are swept in their own time; what is left of the list goes with it.
  call('PEXPIRE', children_key(id), children_kept_ms)
  call('ZREM', KEY_ENDED, id)
  call('ZREM', KEY_EXPIRY, id)
end
return #expired
