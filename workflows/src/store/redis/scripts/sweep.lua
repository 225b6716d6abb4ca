-- Removes workflows whose time has passed, and all that names them.
local max = number()
local expired = call('ZRANGEBYSCORE', KEY_EXPIRY, '-inf', NOW, 'LIMIT', 0, max)
for _, id in ipairs(expired) do
  local parent = call('HGET', workflow_key(id), 'parent')
  if parent then call('ZREM', children_key(parent), id) end
  call('UNLINK', workflow_key(id))
end
in_slices('ZREM', KEY_ENDED, expired)
in_slices('ZREM', KEY_EXPIRY, expired)
return #expired
