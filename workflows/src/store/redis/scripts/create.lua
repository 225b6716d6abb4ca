-- Creates one workflow.
local made = create()
settle()
return made and 'new' or 'existing'
