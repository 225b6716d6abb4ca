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

local function unread(id)
  return call('LRANGE', inbox_key(id), 0, SIGNALS_HANDED_MAX - 1)
end

local function keep(id)
  call('ZADD', KEY_LEASE, LEASE_UNTIL, id)
  return { 'done', LEASE_UNTIL, unread(id) }
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

local function finish(id, keep_ms, grace_ms, created)
  local expires = whole(now + keep_ms)
  call('ZREM', KEY_LEASE, id)
  call('HSET', workflow_key(id), 'ended', NOW)
  call('ZREM', KEY_OPEN, id)
  call('ZADD', KEY_ENDED, created, id)
  call('ZADD', KEY_EXPIRY, expires, id)
  for _, name in ipairs(call('SMEMBERS', held_key(id))) do free_lock(id, name) end
  call('UNLINK', inbox_key(id), held_key(id))
  call('PEXPIRE', workflow_key(id), whole(keep_ms + grace_ms))
  call('PEXPIRE', journal_key(id), whole(keep_ms + grace_ms))
end

-- Ends the lease. What has arrived meanwhile makes the workflow due now.
local function park(id, at, woken)
  call('ZREM', KEY_LEASE, id)
  -- Asked again: a resource that this very commit freed may have woken it.
  if woken then call('HDEL', workflow_key(id), 'woken') end
  if woken or call('LLEN', inbox_key(id)) > 0 then
    make_due(id, now)
  elseif at then
    make_due(id, math.max(at, now))
  end
end

local GRACE_MS = number()

local function commit_one(commit)
  local id, key = commit.id, workflow_key(commit.id)
  local found = call('HMGET', key, 'seq', 'fence', 'mark', 'status', 'kind', 'target', 'created')
  local seq, kind, target = tonumber(found[1]), found[5], found[6]
  if not seq then return { 'fenced' } end
  local holds = found[2] == commit.fence and call('ZSCORE', KEY_LEASE, id)
  if found[3] == commit.mark then
    if commit.next ~= 'keep' then return { 'done', false, {} } end
    return holds and keep(id) or { 'fenced' }
  end
  if not holds then return { 'fenced' } end
  if seq ~= commit.expected then return { 'conflict', found[1] } end
  local refused = busy(id, commit.take)
  if refused then return refused end

  local fields = { 'mark', commit.mark, 'status', commit.status, 'headline', commit.headline, 'updated', NOW }
  for _, entry in ipairs(commit.entries) do
    seq = seq + 1
    call('RPUSH', journal_key(id), entry.digest .. ' ' .. entry.body)
    publish(id, kind, target, commit.status, commit.headline, seq, entry.digest, entry.body)
    fields[9], fields[10], fields[11], fields[12] = 'seq', whole(seq), 'head', entry.digest
  end
  if commit.with_state == '1' then
    fields[#fields + 1], fields[#fields + 2] = 'state', commit.state
  end
  if commit.trace ~= '' then
    fields[#fields + 1], fields[#fields + 2] = 'trace', commit.trace
  end
  call('HSET', key, unpack(fields))
  if commit.consumed > 0 then call('LTRIM', inbox_key(id), commit.consumed, -1) end
  local ends = commit.next == 'end'
  if ends then
    call('HINCRBY', KEY_COUNTS, found[4], -1)
  elseif found[4] ~= commit.status then
    call('HINCRBY', KEY_COUNTS, found[4], -1)
    call('HINCRBY', KEY_COUNTS, commit.status, 1)
  end
  move_resources(id, commit)
  for _, new in ipairs(commit.create) do create(new) end
  -- The workflow itself, if it ends with this commit, gets no more signals.
  if ends then finish(id, commit.value, GRACE_MS, found[7]) end
  for _, sent in ipairs(commit.signals) do signal(sent.id, sent.body, false) end
  if commit.next == 'keep' then return keep(id) end
  if not ends then park(id, commit.next == 'at' and commit.value, call('HGET', key, 'woken')) end
  return { 'done', false, {} }
end

local function holds(lease)
  return call('HGET', workflow_key(lease.id), 'fence') == lease.fence and call('ZSCORE', KEY_LEASE, lease.id)
end

local function renew(lease)
  if not holds(lease) then return false end
  call('ZADD', KEY_LEASE, LEASE_UNTIL, lease.id)
  return LEASE_UNTIL
end

local function hand_back(lease)
  if not holds(lease) then return end
  call('ZREM', KEY_LEASE, lease.id)
  make_due(lease.id, now)
end

-- A token larger than any before, also than those of a store that was lost or put back from a backup: it
-- never falls behind the clock, in microseconds, and nobody grants a million leases in a second.
local fence
local function next_fence()
  fence = math.max(fence or tonumber(call('GET', KEY_FENCE) or 0), now * 1000) + 1
  return whole(fence)
end

local function grant(id, lease_ms, worker, ticket)
  local key = workflow_key(id)
  local found = call('HMGET', key, 'kind', 'target', 'parent', 'status', 'headline', 'seq', 'head', 'state', 'trace',
    'created', 'updated', 'woken')
  if not found[6] then
    -- It is gone without having ended: somebody removed it by hand.
    call('ZREM', KEY_LEASE, id)
    return nil
  end
  local until_, token = whole(now + lease_ms), next_fence()
  call('ZADD', KEY_LEASE, until_, id)
  call('HSET', key, 'fence', token, 'worker', worker, 'ticket', ticket)
  if found[12] then call('HDEL', key, 'woken') end
  return { id, token, until_, found, unread(id) }
end

-- Leases that were granted to claims whose answer was lost: nobody knows of them, and they are due again.
local function take_back(lost, look_max)
  local is_lost = {}
  for _, ticket in ipairs(lost) do is_lost[ticket] = true end
  for _, id in ipairs(call('ZRANGE', KEY_LEASE, 0, look_max - 1)) do
    if is_lost[call('HGET', workflow_key(id), 'ticket') or ''] then
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
  local claimed = {}
  for _, id in ipairs(ids) do claimed[#claimed + 1] = grant(id, lease_ms, worker, ticket) end
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
