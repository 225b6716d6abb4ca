-- Frees a budget share that no open workflow stands for.
local name, member = text(), text()
local who = call('HGET', budget_key(name), member)
if not who then return 'nobody' end
local seq, flags = peek(who)
if seq and band(flags, ENDED) == 0 then return 'open' end
free_share(name, member)
remember()
settle()
return 'released'
