-- Frees a budget share that no open workflow stands for.
local name, member = text(), text()
local holder = call('HGET', budget_key(name), member)
if not holder then return 'nobody' end
local found = call('HMGET', workflow_key(holder), 'seq', 'ended')
if found[1] and not found[2] then return 'open' end
free_share(name, member)
call('INCR', KEY_REVISION)
settle()
return 'released'
