-- Commits, renews and hands back, then claims. Each commit stands or falls alone and says how in its own reply.

local LEASE_UNTIL = whole(now + number())

-- Leases that last until LEASE_UNTIL, and leases that are over: written before anything is claimed.
local kept, over = {}, {}
-- Ended workflows: removed from the open ones, and by when they were created and when they are swept.
local closed, by_creation, by_expiry = {}, {}, {}

local function settle_leases()
  local gone, lasting = {}, {}
  for id in pairs(over) do gone[#gone + 1] = id end
  for id in pairs(kept) do
    lasting[#lasting + 1] = LEASE_UNTIL
    lasting[#lasting + 1] = id
  end
  in_slices('ZREM', KEY_LEASE, gone)
  in_slices('ZADD', KEY_LEASE, lasting)
  in_slices('ZREM', KEY_OPEN, closed)
  in_slices('ZADD', KEY_ENDED, by_creation)
  in_slices('ZADD', KEY_EXPIRY, by_expiry)
end

local function release(id)
  kept[id], over[id] = nil, true
end

-- The signals that are handed out with a lease. `mail`: there may be some.
local function unread(id, mail)
  if not mail then return {} end
  local bodies = call('LRANGE', inbox_key(id), 0, SIGNALS_HANDED_MAX - 1)
  if #bodies == 0 then call('HDEL', workflow_key(id), 'mail') end
  return bodies
end

-- Verdicts without more to say are one letter.
local DONE, KEPT, FENCED = 'd', 'k', 'f'

local function keep(id, mail)
  kept[id] = true
  if not mail then return KEPT end
  return { KEPT, unread(id, mail) }
end

local function read_resources(count, with_limit)
  local list = {}
  for i = 1, count do
    list[i] = { kind = text(), name = text(), member = text(), limit = with_limit and number() }
  end
  return list
end

-- The first wish that can't be granted, as a reply; nil if all can.
local function busy(id, take)
  local joining, counted = {}, {}
  for i, wish in ipairs(take) do
    if wish.kind == 'lock' then
      local holder = call('HGET', KEY_LOCKS, wish.name)
      if holder and holder ~= id then
        call('ZADD', wait_key('lock:' .. wish.name), 'NX', NOW, id)
        return { 'busy', i, { holder } }
      end
    else
      local key = budget_key(wish.name)
      local member = wish.name .. '\0' .. wish.member
      if call('HEXISTS', key, wish.member) == 0 then
        -- The same member twice is one member.
        if not counted[member] then joining[key] = (joining[key] or 0) + 1 end
        counted[member] = true
        if call('HLEN', key) + joining[key] > wish.limit then
          call('ZADD', wait_key('budget:' .. wish.name), 'NX', NOW, id)
          return { 'busy', i, call('HVALS', key) }
        end
      end
    end
  end
end

local function take_resources(id, take)
  for _, wish in ipairs(take) do
    if wish.kind == 'lock' then
      call('HSET', KEY_LOCKS, wish.name, id)
      call('SADD', held_key(id), wish.name)
      call('ZREM', wait_key('lock:' .. wish.name), id)
    else
      call('HSET', budget_key(wish.name), wish.member, id)
      call('SADD', KEY_BUDGETS, wish.name)
      call('ZREM', wait_key('budget:' .. wish.name), id)
    end
  end
end

local function give_resources(id, give)
  for _, given in ipairs(give) do
    if given.kind == 'lock' then
      call('SREM', held_key(id), given.name)
      free_lock(id, given.name)
    elseif call('HGET', budget_key(given.name), given.member) == id then
      free_share(given.name, given.member)
    end
  end
end

local function takes_a_lock(take)
  for _, wish in ipairs(take) do
    if wish.kind == 'lock' then return true end
  end
  return false
end

local function finish(id, keep_ms, mail, locks, created)
  release(id)
  closed[#closed + 1] = id
  by_creation[#by_creation + 1], by_creation[#by_creation + 2] = tonumber(created) and created or NOW, id
  by_expiry[#by_expiry + 1], by_expiry[#by_expiry + 2] = whole(now + keep_ms), id
  if locks then
    for _, name in ipairs(call('SMEMBERS', held_key(id))) do free_lock(id, name) end
    call('UNLINK', held_key(id))
  end
  if mail then call('UNLINK', inbox_key(id)) end
end

-- Ends the lease. What has arrived meanwhile makes the workflow due now.
local function park(id, at, queue, mail, was_woken)
  release(id)
  if mail and call('LLEN', inbox_key(id)) == 0 then
    call('HDEL', workflow_key(id), 'mail')
    mail = false
  end
  -- Its being woken is forgotten when it is claimed, which is next.
  if mail or was_woken then
    make_due(id, now, queue)
  elseif at then
    make_due(id, math.max(at, now), queue)
  end
end

-- Head: how many arguments follow; how many entries, resources to take and to give, workflows to create, signals to send, signals
-- consumed; whether there is a state; what is next, and its value; id, fence, revision, status, mark, queue, traceparent (may be empty).
local COMMIT = '<IHHHHHIBBdsssssss'
local KEEP, AT, END = 0, 1, 3

-- Where the next commit begins, also where this one was refused before all of it was read.
local after = place

-- What a commit looks at; the last one of a workflow also at when it was created.
local SEEN = { 'seq', 'fence', 'status', 'mail', 'woken', 'locks', 'tries' }
local SEEN_LAST = { 'seq', 'fence', 'status', 'mail', 'woken', 'locks', 'tries', 'created' }

-- What a commit writes of its workflow. Used again and again: a table that grows costs more than what is put into it.
local fields = { 'updated', NOW, 'headline' }

local function commit_one()
  local follow, entries, take, give, created, sent, consumed, with_state, next, value, id, fence, seq, status, mark, queue, trace =
    unpacked(COMMIT, text())
  after = place + follow
  local key, headline = WORKFLOW .. id, text()
  local ends = next == END
  local found = call('HMGET', key, unpack(ends and SEEN_LAST or SEEN))
  if not found[1] then return FENCED end
  local holds, mail = found[2] == fence, found[4]
  -- With entries that stand already it would not be at `seq` any more.
  if entries == 0 or found[1] ~= seq then
    if call('HGET', key, entries == 0 and 'mark' or 'head') == mark then
      if next ~= KEEP then return DONE end
      return holds and keep(id, mail) or FENCED
    end
  end
  if not holds then return FENCED end
  if found[1] ~= seq then return { 'conflict', found[1] } end

  local n, before = 4, tonumber(seq)
  fields[4] = headline
  if with_state == 1 then
    fields[5], fields[6], n = 'state', text(), 6
  end
  if entries == 0 then
    fields[n + 1], fields[n + 2], n = 'mark', mark, n + 2
  else
    for i = 1, entries do
      fields[n + 1], fields[n + 2] = entry_field(before + i), text()
      n = n + 2
    end
    fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 'seq', as_text(before + entries), 'head', mark
    n = n + 4
  end
  local locks = found[6]
  take = take > 0 and read_resources(take, true)
  if take then
    local refused = busy(id, take)
    if refused then return refused end
    if not locks and takes_a_lock(take) then
      locks = true
      fields[n + 1], fields[n + 2], n = 'locks', '1', n + 2
    end
  end
  if entries > 0 then publish(id, before + 1, entries, status, headline) end
  if status ~= found[3] then
    fields[n + 1], fields[n + 2], n = 'status', status, n + 2
    if not ends then count(status, 1) end
    count(found[3], -1)
  elseif ends then
    count(status, -1)
  end
  if trace ~= '' then fields[n + 1], fields[n + 2], n = 'trace', trace, n + 2 end
  if next ~= KEEP then
    fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 'fence', '', 'queue', queue
    n = n + 4
    if ends then fields[n + 1], fields[n + 2], n = 'ended', NOW, n + 2 end
  end
  call('HSET', key, unpack(fields, 1, n))
  if found[7] then call('HDEL', key, 'tries') end
  if consumed > 0 and mail then call('LTRIM', inbox_key(id), consumed, -1) end
  if take then take_resources(id, take) end
  if give > 0 then give_resources(id, read_resources(give, false)) end
  for _ = 1, created do create() end
  if ends then finish(id, value, mail, locks, found[8]) end
  -- The workflow itself, if it ends with this commit, gets no more signals.
  for _ = 1, sent do
    local to = text()
    signal(to, text(), false)
  end
  mail = mail or mailed[id]
  if next == KEEP then return keep(id, mail) end
  if not ends then park(id, next == AT and value, queue, mail, found[5] or woken[id]) end
  return DONE
end

local LEASE = '^(%S+) (%S+)$'

local function holds(id, fence)
  return call('HGET', WORKFLOW .. id, 'fence') == fence
end

local function renew()
  local id, fence = match(text(), LEASE)
  if not holds(id, fence) then return false end
  kept[id] = true
  return true
end

local function hand_back()
  local id, fence = match(text(), LEASE)
  if not holds(id, fence) then return end
  call('HSET', WORKFLOW .. id, 'fence', '')
  release(id)
  make_due(id, now, call('HGET', WORKFLOW .. id, 'queue'))
end

-- A token larger than any before, also than those of a store that was lost or put back from a backup: it
-- never falls behind the clock, in microseconds, and nobody grants a million leases in a second.
local fence
local function next_fence()
  fence = math.max(fence or tonumber(call('GET', KEY_FENCE) or 0), now * 1000) + 1
  return whole(fence)
end

-- Entries that are read before it is known how many there are, and the most that are handed out: the others are read in pages.
local ENTRIES_AT_ONCE, ENTRIES_HANDED_MAX = 4, 128

-- Workflows that can't be granted, and why: what is kept of them is not of the form it should have.
local broken = {}

-- Nobody is granted it any more. Where that can be written, listings show it.
local function set_aside(id, why)
  broken[#broken + 1] = { id, why }
  call('ZREM', KEY_LEASE, id)
  local status = redis.pcall('HGET', WORKFLOW .. id, 'status')
  if type(status) ~= 'string' then return end
  call('HSET', WORKFLOW .. id, 'fence', '', 'status', 'quarantined', 'headline', why)
  count(status, -1)
  count('quarantined', 1)
end

-- The workflow as its new holder finds it; nil if it is gone without having ended (somebody removed it by hand), can't be
-- granted, or waits elsewhere. `expired`: its last holder is presumed dead.
local function grant(id, holder, serves, expired)
  local key = WORKFLOW .. id
  local found = redis.pcall('HMGET', key, 'kind', 'target', 'parent', 'status', 'headline', 'seq', 'head', 'trace',
    'created', 'updated', 'queue', 'e1', 'e2', 'e3', 'e4', 'woken', 'mail', 'tries')
  if found.err then return set_aside(id, found.err) end
  if not found[6] then
    call('ZREM', KEY_LEASE, id)
    return nil
  end
  local seq, queue = tonumber(found[6]), found[11]
  if not seq or not queue then return set_aside(id, 'it has no number of entries, or no queue') end
  if not serves[queue] then
    call('HSET', key, 'fence', '')
    call('ZREM', KEY_LEASE, id)
    return make_due(id, now, queue)
  end
  local token, woken, mail, tries = next_fence(), found[16], found[17], found[18]
  if expired then
    tries = (tonumber(tries) or 0) + 1
    call('HSET', key, 'fence', token, 'holder', holder, 'tries', tries)
  else
    call('HSET', key, 'fence', token, 'holder', holder)
  end
  if woken then call('HDEL', key, 'woken') end
  -- What was read is handed out as it is, the document with the first entries after it.
  found[16], found[17], found[18] = nil, nil, nil
  if seq > ENTRIES_AT_ONCE then
    local names = {}
    for i = ENTRIES_AT_ONCE + 1, math.min(seq, ENTRIES_HANDED_MAX) do names[#names + 1] = 'e' .. i end
    for i, entry in ipairs(call('HMGET', key, unpack(names))) do found[15 + i] = entry end
  end
  return { id, token, tries or 0, found, unread(id, mail) }
end

-- Leases that were granted to claims whose answer was lost: nobody knows of them, and they are due again.
local function take_back(lost, look_max)
  local is_lost = {}
  for _, ticket in ipairs(lost) do is_lost[ticket] = true end
  for _, id in ipairs(call('ZRANGE', KEY_LEASE, 0, look_max - 1)) do
    local found = call('HMGET', WORKFLOW .. id, 'holder', 'queue')
    if is_lost[match(found[1] or '', '(%S+)$') or ''] then
      call('HSET', WORKFLOW .. id, 'fence', '')
      call('ZREM', KEY_LEASE, id)
      make_due(id, now, found[2])
    end
  end
  settle_due()
end

-- Those of `queues` that have been due longest, at most `max`; taken out.
local function take_due(queues, max)
  if #queues == 1 then
    local key = due_key(queues[1])
    local ids = call('ZRANGEBYSCORE', key, '-inf', NOW, 'LIMIT', 0, max)
    -- They stand first: removed by their places, which costs less than by their names.
    if #ids > 0 then call('ZREMRANGEBYRANK', key, 0, #ids - 1) end
    return ids
  end
  local found = {}
  for _, queue in ipairs(queues) do
    local due = call('ZRANGEBYSCORE', due_key(queue), '-inf', NOW, 'WITHSCORES', 'LIMIT', 0, max)
    for i = 1, #due, 2 do found[#found + 1] = { due[i], tonumber(due[i + 1]), queue } end
  end
  -- Of those that became due together the first by name, as within one queue.
  table.sort(found, function(one, other) return one[2] < other[2] or (one[2] == other[2] and one[1] < other[1]) end)
  local ids, gone = {}, {}
  for i = 1, math.min(#found, max) do
    local id, queue = found[i][1], found[i][3]
    ids[i] = id
    gone[queue] = gone[queue] or {}
    table.insert(gone[queue], id)
  end
  for queue, taken in pairs(gone) do in_slices('ZREM', due_key(queue), taken) end
  return ids
end

-- Expired leases first, because their workflows have waited for a dead worker; then what has been due longest.
local function claim(max, until_text, holder, queues)
  local serves = {}
  for _, queue in ipairs(queues) do serves[queue] = true end
  local claimed, leases = {}, {}
  local function grant_all(ids, expired)
    for _, id in ipairs(ids) do
      local ok, granted = pcall(grant, id, holder, serves, expired)
      if not ok then granted = set_aside(id, its_own(granted)) end
      if granted then
        claimed[#claimed + 1] = granted
        leases[#leases + 1], leases[#leases + 2] = until_text, id
      end
    end
  end
  grant_all(call('ZRANGEBYSCORE', KEY_LEASE, '-inf', NOW, 'LIMIT', 0, max), true)
  if #claimed < max then grant_all(take_due(queues, max - #claimed), false) end
  in_slices('ZADD', KEY_LEASE, leases)
  if fence then call('SET', KEY_FENCE, whole(fence)) end
  settle_due()
  settle_counts()
  return claimed
end

-- When there may be something to claim in `queues`, or the next lease ends.
local function earliest(queues)
  local first = tonumber(call('ZRANGE', KEY_LEASE, 0, 0, 'WITHSCORES')[2])
  for _, queue in ipairs(queues) do
    local at = tonumber(call('ZRANGE', due_key(queue), 0, 0, 'WITHSCORES')[2])
    if at and (not first or at < first) then first = at end
  end
  return first
end

local function read_texts(count)
  local list = {}
  for i = 1, count do list[i] = text() end
  return list
end

local reply = { NOW, LEASE_UNTIL, {}, {}, {}, false, broken }
for i = 1, number() do
  local ok, verdict = pcall(commit_one)
  reply[3][i] = ok and verdict or { 'broken', its_own(verdict) }
  place = after
end
for i = 1, number() do reply[4][i] = renew() end
for _ = 1, number() do hand_back() end
settle_leases()
settle_opened()
settle_due()
settle_counts()
settle_events()
local claim_max, claim_until, lost_look_max = match(text(), '^(%S+) (%S+) (%S+)$')
claim_max, claim_until = tonumber(claim_max), whole(now + claim_until)
local holder, queues, lost = text(), read_texts(number()), read_texts(number())
if #lost > 0 then take_back(lost, tonumber(lost_look_max)) end
if claim_max >= 0 then reply[5] = claim(claim_max, claim_until, holder, queues) end
local next_look = earliest(queues)
if next_look then reply[6] = whole(next_look) end
if claim_max >= 0 and not (next_look and next_look <= now) then
  -- Nothing is left that a ring could be about.
  for _, queue in ipairs(queues) do
    call('DEL', bell_key(queue))
    rings[queue] = nil
  end
end
settle_bell()
return reply
