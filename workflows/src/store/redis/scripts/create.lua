-- Creates workflows, each by itself: what is wrong with one is said of that one alone. Answers what time it is, and of each what became of it;
-- of none where all are new.
-- ARGV: how many; when they were sent by our clock, as far as who sends them knows it: 0 if some are not simply due now, in one queue, and children
-- of nobody; that queue; their ids; and of each what `create_one` reads, or `create` where all are alike.
local how_many, sent, queue = number(), number(), text()
local ids = place
load_heads(ARGV, ids + 1, ids + how_many)
place = ids + how_many
if how_many > 0 then remember() end

-- Whose clock is further off gets our time, which costs more.
local CLOCK_OFF_MAX = 1000

-- None of them is there, and no two are the same: then what was sent is written as it is, and this language need not make any of it anew.
local function are_plain()
  if sent == 0 or math.abs(sent - now) > CLOCK_OFF_MAX then return false end
  local met = {}
  for i = ids + 1, ids + how_many do
    local id = ARGV[i]
    if raw[id] or met[id] then return false end
    met[id] = true
  end
  return true
end

if are_plain() then
  local heads, list, n, m = {}, {}, 0, 0
  local status = STATUSES[RUNNABLE + 1]
  for i = ids + 1, ids + how_many do
    local id = ARGV[i]
    heads[n + 1], documents[n + 1], entries_written[n + 1], opened[n + 2], list[n + 2] = id, id, id .. ':1', id, id
    opened[n + 1], list[n + 1] = NOW, NOW
    heads[n + 2], documents[n + 2], entries_written[n + 2] = ARGV[place + 1], ARGV[place + 2], ARGV[place + 3]
    happened[m + 1], happened[m + 2], happened[m + 3], happened[m + 4] = id, APPEARED, status, ARGV[place + 4]
    n, m, place = n + 2, m + 4, place + NEW_ARGUMENTS
  end
  heads_written, list.earliest, due[queue], rings[queue] = heads, now, list, how_many
  count(RUNNABLE, how_many)
  settle()
  return { NOW, {} }
end

local made = {}
for i = 1, how_many do
  local after = place + NEW_ARGUMENTS
  local ok, is_new
  if sent == 0 then
    after = after + 1
    ok, is_new = pcall(create_one, ARGV[ids + i])
  else
    ok, is_new = pcall(create, ARGV[ids + i], now, queue)
  end
  made[i] = ok and (is_new and 'new' or 'existing') or { its_own(is_new) }
  place = after
end
settle()
return { NOW, made }
