-- Creates one workflow.
local made = create(read_new())
settle_bell()
return made and 'new' or 'existing'
