-- Creates one workflow.
local made = create(read_new())
settle()
return made and 'new' or 'existing'
