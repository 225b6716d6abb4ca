-- Frees a budget share that no open workflow stands for.
local name, member = text(), text()
local holder = call('HGET', budget_key(name), member)
if not holder then return 'nobody' end
local seq, _, flags = peek(holder)
if seq and band(flags, ENDED) == 0 then return 'open' end
free_share(name, member)
remember()
settle()
return 'released'
