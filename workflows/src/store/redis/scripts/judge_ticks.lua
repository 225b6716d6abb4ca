-- Moves the ledger of a schedule and creates what its ticks start.
local schedule, last, judged, count = text(), text(), text(), number()
local created = {}
for i = 1, count do created[i] = read_new() end
if (call('HGET', KEY_TICKS, schedule) or '') ~= last then return 'judged-before' end
call('HSET', KEY_TICKS, schedule, judged)
call('INCR', KEY_REVISION)
for i = 1, count do create(created[i]) end
settle()
return 'judged'
