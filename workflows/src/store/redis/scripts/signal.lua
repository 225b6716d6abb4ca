-- Puts one signal into a workflow's inbox.
local id, body = text(), text()
local became = signal(id, body, true)
call('INCR', KEY_REVISION)
settle()
return became
