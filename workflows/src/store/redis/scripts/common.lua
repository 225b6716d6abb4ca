-- What every script that writes has in common. Rust puts this file before each of them.
--
-- KEYS are the same for all (keys.rs). Keys of single workflows, resources, queues and parents are made here of the prefix,
-- because a claim can't know them before; all share one hash tag, and so one slot of a cluster.
-- Redis refuses a script for want of memory or replicas at its first write, and only if that write adds something:
-- so what adds something comes first.
-- Each redis.call costs about half a microsecond beside its own work, each argument a tenth of one, and so does each string that is
-- made; to write a number as text costs a third. Hence heads, in which what is short stands in one argument, packed, because a
-- pattern of as many captures costs six times as much as `struct.unpack`; the flags in the hash (`mail`, `locks`), which spare a look
-- at another key; the journal in the same hash; texts of numbers that are kept (`TEXT`); and what is collected here and written at the
-- end (`settle`).

local call, match, format, unpacked = redis.call, string.match, string.format, struct.unpack
local KEY_FENCE, KEY_LEASE, KEY_EVENTS, KEY_COUNTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local KEY_OPEN, KEY_ENDED, KEY_EXPIRY, KEY_LOCKS, KEY_BUDGETS, KEY_TICKS = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local KEY_REVISION = KEYS[#KEYS]

-- Limits: the reasons are in limits.rs, which hands them over.
local PREFIX, EVENTS_KEPT, BELL_RINGS_MAX, WAITERS_LOOKED_MAX, INBOX_SIGNALS_MAX, SIGNALS_HANDED_MAX =
  match(ARGV[1], '^(%S+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
BELL_RINGS_MAX, WAITERS_LOOKED_MAX = tonumber(BELL_RINGS_MAX), tonumber(WAITERS_LOOKED_MAX)
INBOX_SIGNALS_MAX, SIGNALS_HANDED_MAX = tonumber(INBOX_SIGNALS_MAX), tonumber(SIGNALS_HANDED_MAX)
-- Lua's stack holds 8,000; even, so that a score and its member stay together.
local SLICE = 1000

local place = 1
local function text()
  place = place + 1
  return ARGV[place]
end
local function number()
  place = place + 1
  return tonumber(ARGV[place])
end

-- Lua would write 1.8e+15.
local function whole(n)
  return format('%.0f', n)
end

-- Small numbers come again and again in one call: each is written once.
local TEXT, ENTRY = {}, {}
local function as_text(n)
  local known = TEXT[n]
  if not known then
    known = whole(n)
    TEXT[n] = known
  end
  return known
end

-- The field of the entry at that place.
local function entry_field(n)
  local known = ENTRY[n]
  if not known then
    known = 'e' .. whole(n)
    ENTRY[n] = known
  end
  return known
end

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local NOW = whole(now)

local WORKFLOW = PREFIX .. ':wf:'
local function workflow_key(id) return WORKFLOW .. id end
local function inbox_key(id) return WORKFLOW .. id .. ':inbox' end
local function held_key(id) return WORKFLOW .. id .. ':locks' end
local function children_key(id) return PREFIX .. ':children:' .. id end
local function budget_key(name) return PREFIX .. ':budget:' .. name end
local function wait_key(pool) return PREFIX .. ':wait:' .. pool end
local function due_key(queue) return PREFIX .. ':due:' .. queue end
local function bell_key(queue) return PREFIX .. ':bell:' .. queue end

local function in_slices(command, key, items)
  for from = 1, #items, SLICE do call(command, key, unpack(items, from, math.min(from + SLICE - 1, #items))) end
end

-- --- what is written at the end ---

local moved = {}
local happened = {}
-- Workflows that are new: scores and members of the open ones.
local opened = {}

-- `by` more open workflows have that status.
local function count(status, by)
  moved[status] = (moved[status] or 0) + by
end

local function settle_counts()
  for status, by in pairs(moved) do
    if by ~= 0 then call('HINCRBY', KEY_COUNTS, status, by) end
  end
  moved = {}
end

-- All that one script did is one element of the stream: an element costs as much as the commit that it tells of.
-- events.rs reads the rest, the entry for instance, where it is.
local function settle_events()
  if #happened == 0 then return end
  call('INCR', KEY_REVISION)
  call('XADD', KEY_EVENTS, 'MAXLEN', '~', EVENTS_KEPT, '*', 'e', table.concat(happened))
end

-- `count` entries of that workflow, the first of them at place `first`.
local function publish(id, first, entries, status, headline)
  happened[#happened + 1] = id .. ' ' .. as_text(first) .. ' ' .. as_text(entries) .. ' ' .. status .. ' ' .. as_text(#headline) .. ':' .. headline
end

-- --- due ---

-- By queue: scores and members to be written; who is due now; how many rings.
local due, due_now, rings = {}, {}, {}

local function make_due(id, at, queue)
  local list = due[queue]
  if not list then
    list = { earliest = at }
    due[queue] = list
  end
  list[#list + 1], list[#list + 2] = at == now and NOW or whole(at), id
  if at <= now then
    due_now[id] = true
    rings[queue] = (rings[queue] or 0) + 1
  elseif at < list.earliest then
    list.earliest = at
  end
end

-- For a workflow that is neither leased nor ended.
local function make_due_now(id, queue)
  if due_now[id] then return end
  local at = call('ZSCORE', due_key(queue), id)
  if not at or tonumber(at) > now then make_due(id, now, queue) end
end

-- What is due later rings only if it is due before all else: who waits must hear of it.
local function settle_due()
  for queue, list in pairs(due) do
    local key = due_key(queue)
    if not rings[queue] then
      local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
      if not first or list.earliest < tonumber(first) then rings[queue] = 1 end
    end
    in_slices('ZADD', key, list)
  end
  due = {}
end

local function settle_bell()
  for queue, count in pairs(rings) do
    local pushed = {}
    for i = 1, math.min(count, BELL_RINGS_MAX) do pushed[i] = '1' end
    if call('LPUSH', bell_key(queue), unpack(pushed)) > BELL_RINGS_MAX then
      call('LTRIM', bell_key(queue), 0, BELL_RINGS_MAX - 1)
    end
  end
end

local function settle_opened()
  in_slices('ZADD', KEY_OPEN, opened)
  opened = {}
end

local function settle()
  settle_opened()
  settle_due()
  settle_counts()
  settle_events()
  settle_bell()
end

-- An error in what is kept of one workflow is that workflow's alone; all others are about Redis, and refuse the whole call.
local function its_own(problem)
  local told = type(problem) == 'table' and problem.err or tostring(problem)
  if not string.find(told, 'WRONGTYPE', 1, true) then error(problem, 0) end
  return told
end

-- --- create ---

-- Head: when it is due (in the past: now), id, parent, traceparent, queue; what is not there is empty.
local NEW, NEW_ARGUMENTS = '<dssss', 5
local NOTHING_MORE = {}

-- Reads one and creates it. True if it is new. What can fail comes before what can't: a workflow is created wholly or not at all.
local function create()
  local at, id, parent, trace, queue = unpacked(NEW, text())
  local kind, target, headline, entry = text(), text(), text(), text()
  local key = WORKFLOW .. id
  if call('EXISTS', key) == 1 then return false end
  if at < now then at = now end
  local status, more = at > now and 'waiting' or 'runnable', NOTHING_MORE
  if parent ~= '' then
    more = { 'parent', parent }
    call('ZADD', children_key(parent), NOW, id)
  end
  if trace ~= '' then
    more = { 'trace', trace, unpack(more) }
  end
  local digest = string.sub(entry, 1, string.find(entry, ' ', 1, true) - 1)
  call('HSET', key, 'kind', kind, 'target', target, 'status', status, 'headline', headline, 'seq', '1', 'head', digest,
    'created', NOW, 'updated', NOW, 'queue', queue, 'e1', entry, unpack(more))
  opened[#opened + 1], opened[#opened + 2] = NOW, id
  count(status, 1)
  publish(id, 1, 1, status, headline)
  make_due(id, at, queue)
  return true
end

-- --- signals ---

-- Workflows that were sent something, or woken, by this very script.
local mailed, woken = {}, {}

-- Whether a lease was granted and not given up: fences are kept for that long.
local function is_leased(fence) return fence and fence ~= '' end

-- What became of it. `once`: what is in the inbox already is not put there again.
local function signal(id, body, once)
  local key, inbox = WORKFLOW .. id, inbox_key(id)
  local found = call('HMGET', key, 'seq', 'ended', 'fence', 'mail', 'queue')
  if not found[1] then return 'missing' end
  if found[2] then return 'ended' end
  if found[4] then
    if once and call('LPOS', inbox, body) then return 'kept' end
    if call('LLEN', inbox) >= INBOX_SIGNALS_MAX then return 'full' end
  else
    call('HSET', key, 'mail', '1')
  end
  call('RPUSH', inbox, body)
  mailed[id] = true
  if not is_leased(found[3]) then make_due_now(id, found[5]) end
  return 'kept'
end

-- --- resources ---

-- Wakes the longest waiter, passing over those that have ended since.
local function wake_one(pool)
  for _ = 1, WAITERS_LOOKED_MAX do
    local id = call('ZPOPMIN', wait_key(pool))[1]
    if not id then return end
    local found = call('HMGET', WORKFLOW .. id, 'seq', 'ended', 'fence', 'queue')
    if found[1] and not found[2] then
      if is_leased(found[3]) then
        call('HSET', WORKFLOW .. id, 'woken', '1')
        woken[id] = true
      else
        make_due_now(id, found[4])
      end
      return
    end
  end
end

local function free_lock(id, name)
  if call('HGET', KEY_LOCKS, name) ~= id then return end
  call('HDEL', KEY_LOCKS, name)
  wake_one('lock:' .. name)
end

local function free_share(name, member)
  call('HDEL', budget_key(name), member)
  if call('EXISTS', budget_key(name)) == 0 then call('SREM', KEY_BUDGETS, name) end
  wake_one('budget:' .. name)
end
