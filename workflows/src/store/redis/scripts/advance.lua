-- Commits, renews and hands back, then claims. Each commit stands or falls alone and says how in its own reply.

local function read_resource(with_limit)
  local resource = { kind = text(), name = text(), member = text() }
  if with_limit then resource.limit = number() end
  return resource
end

local function read_list(read, how)
  local list = {}
  for i = 1, number() do list[i] = read(how) end
  return list
end

local function read_entry() return { digest = text(), body = text() } end
local function read_signal() return { id = text(), body = text() } end
local function read_lease() return { id = text(), fence = text() } end

local function read_commit()
  local commit = {
    id = text(), fence = text(), mark = text(), expected = number(), status = text(), headline = text(),
    consumed = number(), trace = text(), next = text(), value = number(), with_state = text(), state = text(),
  }
  commit.entries = read_list(read_entry)
  commit.take = read_list(read_resource, true)
  commit.give = read_list(read_resource, false)
  commit.create = read_list(read_new)
  commit.signals = read_list(read_signal)
  return commit
end

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

local function keep(id, mail)
  kept[id] = true
  return { 'done', LEASE_UNTIL, unread(id, mail) }
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

local function move_resources(id, commit)
  for _, wish in ipairs(commit.take) do
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
  for _, given in ipairs(commit.give) do
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

local function finish(id, keep_ms, mail, locks)
  release(id)
  closed[#closed + 1] = id
  by_creation[#by_creation + 1], by_creation[#by_creation + 2] = call('ZSCORE', KEY_OPEN, id), id
  by_expiry[#by_expiry + 1], by_expiry[#by_expiry + 2] = whole(now + keep_ms), id
  if locks then
    for _, name in ipairs(call('SMEMBERS', held_key(id))) do free_lock(id, name) end
    call('UNLINK', held_key(id))
  end
  if mail then call('UNLINK', inbox_key(id)) end
end

-- Ends the lease. What has arrived meanwhile makes the workflow due now.
local function park(id, at, mail, was_woken)
  release(id)
  if mail and call('LLEN', inbox_key(id)) == 0 then
    call('HDEL', workflow_key(id), 'mail')
    mail = false
  end
  -- Its being woken is forgotten when it is claimed, which is next.
  if mail or was_woken then
    make_due(id, now)
  elseif at then
    make_due(id, math.max(at, now))
  end
end

local function commit_one(commit)
  local id, key = commit.id, workflow_key(commit.id)
  local found = call('HMGET', key, 'seq', 'fence', 'leased', 'mark', 'status', 'mail', 'woken', 'locks')
  local seq, status, mail = found[1], found[5], found[6]
  if not seq then return { 'fenced' } end
  local holds = found[2] == commit.fence and found[3] == '1'
  if found[4] == commit.mark then
    if commit.next ~= 'keep' then return { 'done', false, {} } end
    return holds and keep(id, mail) or { 'fenced' }
  end
  if not holds then return { 'fenced' } end
  if tonumber(seq) ~= commit.expected then return { 'conflict', seq } end
  local refused = busy(id, commit.take)
  if refused then return refused end

  local ends = commit.next == 'end'
  local locks = found[8] or takes_a_lock(commit.take)
  local fields = { 'mark', commit.mark, 'status', commit.status, 'headline', commit.headline, 'updated', NOW }
  local function set(field, value) fields[#fields + 1], fields[#fields + 2] = field, value end
  for i, entry in ipairs(commit.entries) do
    seq = whole(commit.expected + i)
    call('RPUSH', journal_key(id), entry.digest .. ' ' .. entry.body)
    publish(id, seq, commit.status, commit.headline)
  end
  if #commit.entries > 0 then
    set('seq', seq)
    set('head', commit.entries[#commit.entries].digest)
  end
  if commit.with_state == '1' then set('state', commit.state) end
  if commit.trace ~= '' then set('trace', commit.trace) end
  if commit.next ~= 'keep' then set('leased', '0') end
  if ends then set('ended', NOW) end
  if locks and not found[8] then set('locks', '1') end
  call('HSET', key, unpack(fields))
  if commit.consumed > 0 and mail then call('LTRIM', inbox_key(id), commit.consumed, -1) end
  if ends then
    count(status, -1)
  elseif status ~= commit.status then
    count(status, -1)
    count(commit.status, 1)
  end
  move_resources(id, commit)
  for _, new in ipairs(commit.create) do create(new) end
  if ends then finish(id, commit.value, mail, locks) end
  -- The workflow itself, if it ends with this commit, gets no more signals.
  for _, sent in ipairs(commit.signals) do signal(sent.id, sent.body, false) end
  mail = mail or mailed[id]
  if commit.next == 'keep' then return keep(id, mail) end
  if not ends then park(id, commit.next == 'at' and commit.value, mail, found[7] or woken[id]) end
  return { 'done', false, {} }
end

local function holds(lease)
  local found = call('HMGET', workflow_key(lease.id), 'fence', 'leased')
  return found[1] == lease.fence and found[2] == '1'
end

local function renew(lease)
  if not holds(lease) then return false end
  kept[lease.id] = true
  return LEASE_UNTIL
end

local function hand_back(lease)
  if not holds(lease) then return end
  call('HSET', workflow_key(lease.id), 'leased', '0')
  release(lease.id)
  make_due(lease.id, now)
end

-- A token larger than any before, also than those of a store that was lost or put back from a backup: it
-- never falls behind the clock, in microseconds, and nobody grants a million leases in a second.
local fence
local function next_fence()
  fence = math.max(fence or tonumber(call('GET', KEY_FENCE) or 0), now * 1000) + 1
  return whole(fence)
end

-- The workflow as its new holder finds it; nil if it is gone without having ended: somebody removed it by hand.
local function grant(id, until_text, worker, ticket)
  local key = workflow_key(id)
  local found = call('HMGET', key, 'kind', 'target', 'parent', 'status', 'headline', 'seq', 'head', 'state', 'trace',
    'created', 'updated', 'woken', 'mail')
  if not found[6] then
    call('ZREM', KEY_LEASE, id)
    return nil
  end
  local token = next_fence()
  call('HSET', key, 'fence', token, 'leased', '1', 'worker', worker, 'ticket', ticket)
  if found[12] then call('HDEL', key, 'woken') end
  return { id, token, until_text, found, unread(id, found[13]) }
end

-- Leases that were granted to claims whose answer was lost: nobody knows of them, and they are due again.
local function take_back(lost, look_max)
  local is_lost = {}
  for _, ticket in ipairs(lost) do is_lost[ticket] = true end
  for _, id in ipairs(call('ZRANGE', KEY_LEASE, 0, look_max - 1)) do
    if is_lost[call('HGET', workflow_key(id), 'ticket') or ''] then
      call('HSET', workflow_key(id), 'leased', '0')
      call('ZREM', KEY_LEASE, id)
      make_due(id, now)
    end
  end
end

-- Expired leases first, because their workflows have waited for a dead worker; then what has been due longest.
local function claim(max, lease_ms, worker, ticket)
  local ids = call('ZRANGEBYSCORE', KEY_LEASE, '-inf', NOW, 'LIMIT', 0, max)
  local due = call('ZRANGEBYSCORE', KEY_DUE, '-inf', NOW, 'LIMIT', 0, max - #ids)
  if #due > 0 then call('ZREM', KEY_DUE, unpack(due)) end
  for _, id in ipairs(due) do ids[#ids + 1] = id end
  local claimed, leases, until_text = {}, {}, whole(now + lease_ms)
  for _, id in ipairs(ids) do
    local granted = grant(id, until_text, worker, ticket)
    if granted then
      claimed[#claimed + 1] = granted
      leases[#leases + 1], leases[#leases + 2] = until_text, id
    end
  end
  in_slices('ZADD', KEY_LEASE, leases)
  if fence then call('SET', KEY_FENCE, whole(fence)) end
  return claimed
end

local function earliest()
  local due = call('ZRANGE', KEY_DUE, 0, 0, 'WITHSCORES')[2]
  local lease = call('ZRANGE', KEY_LEASE, 0, 0, 'WITHSCORES')[2]
  if due and lease then return math.min(tonumber(due), tonumber(lease)) end
  return tonumber(due or lease)
end

local commits = read_list(read_commit)
local renewals = read_list(read_lease)
local hand_backs = read_list(read_lease)
local claim_max, claim_lease_ms, worker, ticket = number(), number(), text(), text()
local lost, lost_look_max = read_list(text), number()

local reply = { NOW, {}, {}, {}, false }
for i, commit in ipairs(commits) do reply[2][i] = commit_one(commit) end
for i, lease in ipairs(renewals) do reply[3][i] = renew(lease) end
for _, lease in ipairs(hand_backs) do hand_back(lease) end
settle_leases()
settle_counts()
settle_events()
if #lost > 0 then take_back(lost, lost_look_max) end
if claim_max >= 0 then reply[4] = claim(claim_max, claim_lease_ms, worker, ticket) end
local next_look = earliest()
if next_look then reply[5] = whole(next_look) end
if claim_max >= 0 and not (next_look and next_look <= now) then
  -- Nothing is left that a ring could be about.
  call('DEL', KEY_BELL)
else
  settle_bell()
end
return reply
