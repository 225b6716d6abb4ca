-- What every script that writes has in common. Rust puts this file before each of them.
--
-- KEYS are the same for all (keys.rs). Keys of single workflows, resources and parents are made here of the prefix,
-- because a claim can't know them before; all share one hash tag, and so one slot of a cluster.
-- A script first reads all of its arguments, then decides, then writes: no error can leave half of it.
-- Redis refuses a script for want of memory or replicas at its first write, and only if that write adds something:
-- so what adds something comes first.
-- Each redis.call costs about a microsecond beside its own work. Hence the flags in the hash (`leased`, `mail`, `locks`),
-- which spare a look at another key, and what is collected here and written at the end (`settle`).

local call = redis.call
local KEY_FENCE, KEY_DUE, KEY_LEASE, KEY_BELL, KEY_EVENTS, KEY_COUNTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local KEY_OPEN, KEY_ENDED, KEY_EXPIRY, KEY_LOCKS, KEY_BUDGETS, KEY_TICKS = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local KEY_REVISION = KEYS[#KEYS]

-- Limits: the reasons are in limits.rs, which hands them over.
local PREFIX = ARGV[1]
local EVENTS_KEPT, BELL_RINGS_MAX, WAITERS_LOOKED_MAX = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local INBOX_SIGNALS_MAX, SIGNALS_HANDED_MAX = tonumber(ARGV[5]), tonumber(ARGV[6])
-- Lua's stack holds 8,000; even, so that a score and its member stay together.
local SLICE = 1000

local place = 6
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
  return string.format('%.0f', n)
end

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local NOW = whole(now)

local WORKFLOW = PREFIX .. ':wf:'
local function workflow_key(id) return WORKFLOW .. id end
local function journal_key(id) return WORKFLOW .. id .. ':journal' end
local function inbox_key(id) return WORKFLOW .. id .. ':inbox' end
local function held_key(id) return WORKFLOW .. id .. ':locks' end
local function children_key(id) return PREFIX .. ':children:' .. id end
local function budget_key(name) return PREFIX .. ':budget:' .. name end
local function wait_key(pool) return PREFIX .. ':wait:' .. pool end

local function in_slices(command, key, items)
  for from = 1, #items, SLICE do call(command, key, unpack(items, from, math.min(from + SLICE - 1, #items))) end
end

-- --- what is written at the end ---

local rings = 0
local moved = {}
local happened = {}

-- `by` more open workflows have that status.
local function count(status, by)
  moved[status] = (moved[status] or 0) + by
end

local function settle_counts()
  for status, by in pairs(moved) do
    if by ~= 0 then call('HINCRBY', KEY_COUNTS, status, by) end
  end
end

-- All that one script did is one element of the stream: an element costs as much as the commit that it tells of.
-- events.rs reads the rest, the entry for instance, where it is.
local function settle_events()
  if #happened == 0 then return end
  call('INCR', KEY_REVISION)
  call('XADD', KEY_EVENTS, 'MAXLEN', '~', EVENTS_KEPT, '*', 'e', table.concat(happened))
end

local function settle_bell()
  if rings == 0 then return end
  local pushed = {}
  for i = 1, math.min(rings, BELL_RINGS_MAX) do pushed[i] = '1' end
  if call('LPUSH', KEY_BELL, unpack(pushed)) > BELL_RINGS_MAX then
    call('LTRIM', KEY_BELL, 0, BELL_RINGS_MAX - 1)
  end
end

local function settle()
  settle_counts()
  settle_events()
  settle_bell()
end

-- --- due ---

-- Rings if that is now, or earlier than all else that is due.
local function make_due(id, at)
  call('ZADD', KEY_DUE, whole(at), id)
  if at <= now or call('ZRANGE', KEY_DUE, 0, 0)[1] == id then rings = rings + 1 end
end

-- For a workflow that is neither leased nor ended.
local function make_due_now(id)
  local at = call('ZSCORE', KEY_DUE, id)
  if not at or tonumber(at) > now then make_due(id, now) end
end

-- --- events ---

local function publish(id, seq, status, headline)
  happened[#happened + 1] = id .. ' ' .. seq .. ' ' .. status .. ' ' .. #headline .. ':' .. headline
end

-- --- create ---

local function read_new()
  return {
    id = text(), kind = text(), target = text(), parent = text(), headline = text(),
    digest = text(), body = text(), state = text(), trace = text(), due = number(),
  }
end

-- True if it is new.
local function create(new)
  local id, key = new.id, workflow_key(new.id)
  if call('EXISTS', key) == 1 then return false end
  local due = new.due or now
  local status = due > now and 'waiting' or 'runnable'
  local entry = new.digest .. ' ' .. new.body
  local fields = { 'kind', new.kind, 'target', new.target, 'status', status, 'headline', new.headline, 'seq', '1',
    'head', new.digest, 'state', new.state, 'created', NOW, 'updated', NOW }
  if new.parent ~= '' then
    fields[#fields + 1], fields[#fields + 2] = 'parent', new.parent
    call('ZADD', children_key(new.parent), NOW, id)
  end
  if new.trace ~= '' then
    fields[#fields + 1], fields[#fields + 2] = 'trace', new.trace
  end
  call('HSET', key, unpack(fields))
  call('RPUSH', journal_key(id), entry)
  call('ZADD', KEY_OPEN, NOW, id)
  count(status, 1)
  publish(id, '1', status, new.headline)
  make_due(id, math.max(due, now))
  return true
end

-- --- signals ---

-- Workflows that were sent something, or woken, by this very script.
local mailed, woken = {}, {}

-- What became of it. `once`: what is in the inbox already is not put there again.
local function signal(id, body, once)
  local key, inbox = workflow_key(id), inbox_key(id)
  local found = call('HMGET', key, 'seq', 'ended', 'leased', 'mail')
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
  if found[3] ~= '1' then make_due_now(id) end
  return 'kept'
end

-- --- resources ---

-- Wakes the longest waiter, passing over those that have ended since.
local function wake_one(pool)
  for _ = 1, WAITERS_LOOKED_MAX do
    local id = call('ZPOPMIN', wait_key(pool))[1]
    if not id then return end
    local found = call('HMGET', workflow_key(id), 'seq', 'ended', 'leased')
    if found[1] and not found[2] then
      if found[3] == '1' then
        call('HSET', workflow_key(id), 'woken', '1')
        woken[id] = true
      else
        make_due_now(id)
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
