-- Puts one signal into a workflow's inbox.
local id, body = text(), text()
remember()
local became = signal(id, body, true)
settle()
return became
