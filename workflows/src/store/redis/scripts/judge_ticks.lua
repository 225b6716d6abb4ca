-- Moves the ledger of a schedule and creates what its ticks start.
local schedule, last, judged, count = text(), text(), text(), number()
if (call('HGET', KEY_TICKS, schedule) or '') ~= last then return 'judged-before' end
call('HSET', KEY_TICKS, schedule, judged)
remember()
for _ = 1, count do create_one(text()) end
settle()
return 'judged'
