-- What every script that writes has in common. Rust puts this file before each of them.
--
-- KEYS are the same for all (keys.rs). Keys of single resources, queues and parents, and of what few workflows have (an inbox, locks),
-- are made here of the prefix, because a claim can't know them before; all share one hash tag, and so one slot of a cluster.
-- Redis refuses a script for want of memory or replicas at its first write, and only if that write adds something:
-- so what adds something comes first.
--
-- Each redis.call costs about half a microsecond beside its own work, a hash of its own for each workflow more than all that is put
-- into it, each string that is made a tenth. Hence one hash for all heads, one for all documents, one for all entries of all journals:
-- what a call needs of all its workflows is read at once (`load_heads`), and what it changes is written at once at the end (`settle`).
-- A head is what changes with a commit, packed (layout.rs): a pattern of as many captures costs six times as much as `struct.unpack`.

local call, match, format, sub, byte, char = redis.call, string.match, string.format, string.sub, string.byte, string.char
local pack, unpacked, band, bor = struct.pack, struct.unpack, bit.band, bit.bor
local KEY_FENCE, KEY_LEASE, KEY_EVENTS, KEY_COUNTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local KEY_OPEN, KEY_ENDED, KEY_EXPIRY, KEY_LOCKS, KEY_BUDGETS, KEY_TICKS = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local KEY_HEADS, KEY_DOCUMENTS, KEY_JOURNAL, KEY_STATES, KEY_HOLDERS = KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15]
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
local TEXT = {}
local function as_text(n)
  local known = TEXT[n]
  if not known then
    known = whole(n)
    TEXT[n] = known
  end
  return known
end

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local NOW = whole(now)

local function inbox_key(id) return PREFIX .. ':inbox:' .. id end
local function held_key(id) return PREFIX .. ':held:' .. id end
local function children_key(id) return PREFIX .. ':children:' .. id end
local function budget_key(name) return PREFIX .. ':budget:' .. name end
-- Its members beside which nobody becomes one.
local function alone_key(name) return PREFIX .. ':budget-alone:' .. name end
local function wait_key(pool) return PREFIX .. ':wait:' .. pool end
local function due_key(queue) return PREFIX .. ':due:' .. queue end
local function bell_key(queue) return PREFIX .. ':bell:' .. queue end

local function in_slices(command, key, items)
  for from = 1, #items, SLICE do call(command, key, unpack(items, from, math.min(from + SLICE - 1, #items))) end
end

-- --- heads ---

-- Entries, flags, leases that expired without a commit, status, when it was last committed to. What follows is made by whoever commits: the
-- digest of the newest entry, traceparent, mark of the last commit if it had no entries, queue, headline.
local HEAD, TEXTS = '<IBHBd', 'sss'
local FLAGS_AT, STATUS_AT, TAIL_AT = 5, 8, 17
local DIGEST_BYTES = 32
local TEXTS_AT = TAIL_AT + DIGEST_BYTES
-- There may be something in its inbox; a resource that it waits for became free; it may hold locks; it has ended.
local MAIL, WOKEN, LOCKS, ENDED = 1, 2, 4, 8
-- Names of the statuses, by what a head says less one.
local STATUSES = { @STATUSES@ }

-- The form of all this: another release may keep it otherwise.
local LAYOUT = '@LAYOUT@'

-- Heads that were read or made by this script; false: there is none.
local raw = {}
-- Those that are to be written, each after its id; and where each stands there.
local heads_written, written_at = {}, {}

-- Reads items[first..last] of a hash, which are ids, into what is known of it.
local function learn(key, known, items, first, last)
  for from = first, last, SLICE do
    local upto = math.min(from + SLICE - 1, last)
    local found = call('HMGET', key, unpack(items, from, upto))
    for i = from, upto do
      local id = items[i]
      if known[id] == nil then known[id] = found[i - from + 1] end
    end
  end
end

local function load_heads(items, first, last)
  learn(KEY_HEADS, raw, items, first, last)
end

local function head_of(id)
  local head = raw[id]
  if head == nil then
    head = call('HGET', KEY_HEADS, id)
    raw[id] = head
  end
  return head
end

local function put_head(id, head)
  raw[id] = head
  local at = written_at[id]
  if not at then
    at = #heads_written + 2
    heads_written[at - 1], written_at[id] = id, at
  end
  heads_written[at] = head
end

local function flags_of(id)
  return byte(raw[id], FLAGS_AT)
end

local function put_flags(id, flags)
  local head = raw[id]
  put_head(id, sub(head, 1, FLAGS_AT - 1) .. char(flags) .. sub(head, FLAGS_AT + 1))
end

-- What the head of somebody else says: entries, flags, queue. Nothing if there is none, or if it is not of its form: then it is as if
-- it were gone.
local function peek(id)
  local head = head_of(id)
  if not head or #head < TEXTS_AT then return nil end
  local ok, _, _, queue = pcall(unpacked, TEXTS, head, TEXTS_AT)
  if not ok then return nil end
  local seq, flags = unpacked('<IB', head)
  return seq, flags, queue
end

-- --- holders ---

-- Who has a workflow: a fence, the worker, and the ticket of its claim. False: nobody has it. Of what has ended: who had it last.
local holder = {}

local function load_holders(items, first, last)
  learn(KEY_HOLDERS, holder, items, first, last)
end

local function holder_of(id)
  local found = holder[id]
  if found == nil then
    found = call('HGET', KEY_HOLDERS, id)
    holder[id] = found
  end
  return found
end

-- Zero is nobody's.
local function fence_of(id)
  local found = holder_of(id)
  if not found or #found < 8 then return 0 end
  return (unpacked('<d', found))
end

-- Tells the store that has it in hand that somebody else has changed something of it (direct.rs).
local touched = {}
local function touch(id)
  local session = match(holder_of(id) or '', '(%x+)%-%d+$')
  if not session or touched[session] then return end
  touched[session] = true
  -- A value that no hand ever had, also in a store that was put back from a backup. It lasts as long as one that a store makes itself.
  call('SET', PREFIX .. ':hand:' .. session, NOW .. '.' .. call('INCR', PREFIX .. ':touched'), 'EX', 86400)
end

-- Nobody has it any more, from now on.
local function void_lease(id)
  call('ZREM', KEY_LEASE, id)
  call('HDEL', KEY_HOLDERS, id)
  holder[id] = false
end

local function settle_heads()
  in_slices('HSET', KEY_HEADS, heads_written)
  heads_written, written_at = {}, {}
end

-- --- what is written at the end ---

local moved = {}
local happened = {}
-- Workflows that are new: scores and members of the open ones.
local opened = {}
-- Documents, entries and states, each after its name.
local documents, entries_written, states = {}, {}, {}

-- `by` more open workflows have that status.
local function count(status, by)
  local name = STATUSES[status + 1]
  -- What is none was never counted.
  if name then moved[name] = (moved[name] or 0) + by end
end

local function settle_counts()
  for status, by in pairs(moved) do
    if by ~= 0 then call('HINCRBY', KEY_COUNTS, status, by) end
  end
  moved = {}
end

-- That there was a write worth remembering: once.
local remembered = false
local function remember()
  if not remembered then call('INCR', KEY_REVISION) end
  remembered = true
end

-- All that one script did is one element of the stream: an element costs as much as the commit that it tells of.
-- events.rs reads the rest, the entry for instance, where it is.
local function settle_events()
  if #happened == 0 then return end
  remember()
  call('XADD', KEY_EVENTS, 'MAXLEN', '~', EVENTS_KEPT, '*', 'e', table.concat(happened))
  happened = {}
end


local function settle_workflows()
  settle_heads()
  in_slices('HSET', KEY_DOCUMENTS, documents)
  in_slices('HSET', KEY_JOURNAL, entries_written)
  in_slices('HSET', KEY_STATES, states)
  documents, entries_written, states = {}, {}, {}
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
  settle_workflows()
  settle_opened()
  settle_due()
  settle_counts()
  settle_events()
  settle_bell()
end

-- What Redis and `struct` say of what is not of its form.
local MISSHAPEN = { 'WRONGTYPE', 'data string too short', 'unfinished string' }

-- An error in what is kept of one workflow is that workflow's alone; all others are about Redis, and refuse the whole call.
local function its_own(problem)
  local told = type(problem) == 'table' and problem.err or tostring(problem)
  for _, word in ipairs(MISSHAPEN) do
    if string.find(told, word, 1, true) then return told end
  end
  error(problem, 0)
end

-- --- create ---

-- When it is due (in the past: now), queue; then head, document, entries, and what is told of it.
local NEW, NEW_ARGUMENTS = '<ds', 4
local RUNNABLE, WAITING, QUARANTINED = @RUNNABLE@, @WAITING@, @QUARANTINED@
local CREATED, DOCUMENT_AT = pack('<d', now), 9
local APPEARED = ' 1 1 '

-- Reads one and creates it. True if it is new. What can fail comes before what can't: a workflow is created wholly or not at all.
local function create(id, at, queue)
  local head, document, entries, told = text(), text(), text(), text()
  if head_of(id) then return false end
  if at < now then at = now end
  local status = at > now and WAITING or RUNNABLE
  local parent = unpacked('s', document, DOCUMENT_AT)
  if parent ~= '' then call('ZADD', children_key(parent), NOW, id) end
  -- The times are ours.
  put_head(id, pack(HEAD, 1, 0, 0, status, now) .. sub(head, TAIL_AT))
  documents[#documents + 1], documents[#documents + 2] = id, CREATED .. sub(document, DOCUMENT_AT)
  entries_written[#entries_written + 1], entries_written[#entries_written + 2] = id .. ':1', entries
  opened[#opened + 1], opened[#opened + 2] = NOW, id
  count(status, 1)
  -- Only here it turns out whether it is due.
  happened[#happened + 1] = id .. APPEARED .. STATUSES[status + 1] .. told
  make_due(id, at, queue)
  return true
end

-- The same where it is said of it alone when it is due, and in which queue.
local function create_one(id)
  local at, queue = unpacked(NEW, text())
  return create(id, at, queue)
end

-- --- signals ---

-- What became of it. `once`: it comes from outside, where nobody bounds them, and may be a repeat. What a commit sends is
-- said once, and there are as many of them as children and parents.
local function signal(id, body, once)
  local seq, flags, queue = peek(id)
  if not seq then return 'missing' end
  if band(flags, ENDED) ~= 0 then return 'ended' end
  local inbox = inbox_key(id)
  if once and band(flags, MAIL) ~= 0 then
    if call('LPOS', inbox, body) then return 'kept' end
    if call('LLEN', inbox) >= INBOX_SIGNALS_MAX then return 'full' end
  end
  call('RPUSH', inbox, body)
  put_flags(id, bor(flags, MAIL))
  if fence_of(id) == 0 then make_due_now(id, queue) else touch(id) end
  return 'kept'
end

-- --- resources ---

-- Wakes the longest waiter, passing over those that have ended since.
local function wake_one(pool)
  for _ = 1, WAITERS_LOOKED_MAX do
    local id = call('ZPOPMIN', wait_key(pool))[1]
    if not id then return end
    local seq, flags, queue = peek(id)
    if seq and band(flags, ENDED) == 0 then
      if fence_of(id) ~= 0 then
        put_flags(id, bor(flags, WOKEN))
        touch(id)
      else
        make_due_now(id, queue)
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
  call('SREM', alone_key(name), member)
  if call('EXISTS', budget_key(name)) == 0 then call('SREM', KEY_BUDGETS, name) end
  wake_one('budget:' .. name)
end
