-- Commits, renews and hands back, then claims. Each commit stands or falls alone and says how in its own reply.

local LEASE_UNTIL = whole(now + number())
local HAND = text()

-- Leases that last until LEASE_UNTIL, as scores and members, and leases that are over, which come after: written before anything is
-- claimed.
local kept, over, freed = {}, {}, {}
-- Ended workflows: removed from the open ones, and by when they are swept.
local closed, by_expiry = {}, {}

-- The open ones are by when they were created, and so are the ended ones.
local function settle_closed()
  local by_creation = {}
  for from = 1, #closed, SLICE do
    local upto = math.min(from + SLICE - 1, #closed)
    for i, created in ipairs(call('ZMSCORE', KEY_OPEN, unpack(closed, from, upto))) do
      local n = #by_creation
      by_creation[n + 1], by_creation[n + 2] = created or NOW, closed[from + i - 1]
    end
  end
  in_slices('ZADD', KEY_ENDED, by_creation)
  in_slices('ZREM', KEY_OPEN, closed)
end

local function settle_leases()
  in_slices('ZADD', KEY_LEASE, kept)
  in_slices('ZREM', KEY_LEASE, over)
  in_slices('HDEL', KEY_HOLDERS, freed)
  settle_closed()
  in_slices('ZADD', KEY_EXPIRY, by_expiry)
end

local function last(id)
  local n = #kept
  kept[n + 1], kept[n + 2] = LEASE_UNTIL, id
end

local function release(id)
  over[#over + 1], freed[#freed + 1] = id, id
  holder[id] = false
end

-- The signals that are handed out with a lease.
local function unread(id)
  local flags = flags_of(id)
  if band(flags, MAIL) == 0 then return {} end
  local bodies = call('LRANGE', inbox_key(id), 0, SIGNALS_HANDED_MAX - 1)
  if #bodies == 0 then put_flags(id, flags - MAIL) end
  return bodies
end

-- Verdicts, one letter each; OTHER has more to say. FLAGGED: kept, and its head has flags.
local DONE, KEPT, FLAGGED, FENCED, OTHER = 'd', 'k', 'm', 'f', 'o'

local function keep(id)
  last(id)
  local flags = flags_of(id)
  if flags == 0 then return KEPT end
  if band(flags, MAIL) == 0 then return FLAGGED end
  return { KEPT, unread(id) }
end

local function read_resources(count, with_limit)
  local list = {}
  for i = 1, count do
    local one = { kind = text(), name = text(), member = text() }
    if with_limit then one.limit, one.from = number(), text() end
    list[i] = one
  end
  return list
end

-- Does an open workflow have a share of it alone? (What an earlier release has freed is still among these.)
local function is_closed(name)
  for _, member in ipairs(call('SMEMBERS', alone_key(name))) do
    local holder = call('HGET', budget_key(name), member)
    local seq, flags = peek(holder or '')
    if holder and seq and band(flags, ENDED) == 0 then return true end
    if not holder then call('SREM', alone_key(name), member) end
  end
end

-- The first wish that can't be granted, as a reply; nil if all can.
local function busy(id, take)
  local joining, counted = {}, {}
  for i, wish in ipairs(take) do
    if wish.kind == 'lock' then
      local other = call('HGET', KEY_LOCKS, wish.name)
      if other and other ~= id then
        call('ZADD', wait_key('lock:' .. wish.name), 'NX', NOW, id)
        return { 'busy', i, { other } }
      end
    else
      local key = budget_key(wish.name)
      local member = wish.name .. '\0' .. wish.member
      local other = call('HGET', key, wish.member)
      if other and other ~= id then
        local seq, its_flags = peek(other)
        -- Not in the line of those who wait for any share: one that is freed is not this one.
        if seq and band(its_flags, ENDED) == 0 then return { 'busy', i, { other } } end
      end
      if (other or '') ~= id and (other or '') ~= wish.from then return { 'held', i, other or '' } end
      -- Who takes one over to be alone waits for the others, too.
      if other and other ~= id and wish.kind == 'alone' and call('HLEN', key) > 1 then
        call('ZADD', wait_key('budget:' .. wish.name), 'NX', NOW, id)
        return { 'busy', i, call('HVALS', key) }
      end
      if not other then
        -- The same member twice is one member.
        if not counted[member] then joining[key] = (joining[key] or 0) + 1 end
        counted[member] = true
        if call('HLEN', key) + joining[key] > wish.limit or is_closed(wish.name) then
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
      call(wish.kind == 'alone' and 'SADD' or 'SREM', alone_key(wish.name), wish.member)
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

local function finish(id, keep_ms)
  local flags = flags_of(id)
  -- Who had it last stays there: nobody has what has ended. (A hash that is emptied again and again goes back to the form for few
  -- fields, in which each is looked for among all.)
  over[#over + 1] = id
  closed[#closed + 1] = id
  by_expiry[#by_expiry + 1], by_expiry[#by_expiry + 2] = whole(now + keep_ms), id
  if band(flags, LOCKS) ~= 0 then
    for _, name in ipairs(call('SMEMBERS', held_key(id))) do free_lock(id, name) end
    call('UNLINK', held_key(id))
  end
  if band(flags, MAIL) ~= 0 then call('UNLINK', inbox_key(id)) end
end

-- Due now, after a lease that was given up: that it was woken meanwhile has had its effect.
local function make_due_anew(id, queue)
  local flags = flags_of(id)
  if band(flags, WOKEN) ~= 0 then put_flags(id, flags - WOKEN) end
  make_due(id, now, queue)
end

-- Ends the lease. What has arrived meanwhile makes the workflow due now.
local function park(id, at, queue)
  local flags = flags_of(id)
  -- An error where that is no list: then the lease is left to expire, and who claims it sets it aside.
  if band(flags, MAIL) ~= 0 and call('LLEN', inbox_key(id)) == 0 then
    flags = flags - MAIL
    put_flags(id, flags)
  end
  release(id)
  -- What this very commit has freed may be what it waited for.
  if band(flags, MAIL + WOKEN) ~= 0 or due_now[id] then
    make_due_anew(id, queue)
  elseif at then
    make_due(id, math.max(at, now), queue)
  end
end

-- Fence; revision; how many arguments follow; how many entries; whether there is a state; whether more is to be done; what is next; status; the
-- value of what is next. If more is to be done, it says in the same argument how many resources to take and to give, workflows to create,
-- signals to send, signals consumed. The tail of its new head follows, and if there are entries their field, what is kept there, and what is
-- told of them.
local COMMIT, MORE = '<dIIHBBBBd', '<HHHHI'
local KEEP, AT, END = 0, 1, 3

-- Where the next commit begins, also where this one was refused before all of it was read.
local after = place

local function commit_one(id)
  local packed = ARGV[place + 1]
  local fence, seq, follow, entries, with_state, more, next, status, value, rest = unpacked(COMMIT, packed)
  after = place + 1 + follow
  local tail, head, field, added, told = ARGV[place + 2], raw[id]
  place = place + 2
  if entries > 0 then field, added, told = text(), text(), text() end
  if not head then return FENCED end
  local old_seq, flags, _, old_status = unpacked('<IBHB', head)
  local holds = fence ~= 0 and band(flags, ENDED) == 0 and fence_of(id) == fence
  -- With entries that stand already it would not be at `seq` any more.
  if entries == 0 or old_seq ~= seq then
    local stands
    if entries == 0 then
      local _, old_mark = unpacked('ss', head, TEXTS_AT)
      local _, mark = unpacked('ss', tail, DIGEST_BYTES + 1)
      stands = old_mark == mark
    else
      stands = sub(head, TAIL_AT, TEXTS_AT - 1) == sub(tail, 1, DIGEST_BYTES)
    end
    if stands then
      if next ~= KEEP then return DONE end
      return holds and keep(id) or FENCED
    end
  end
  if not holds then return FENCED end
  if old_seq ~= seq then return { 'conflict', as_text(old_seq) } end

  local take, give, created, sent, consumed = false, false, 0, 0, 0
  if more == 1 then
    take, give, created, sent, consumed = unpacked(MORE, packed, rest)
    take = take > 0 and read_resources(take, true)
    if take then
      local refused = busy(id, take)
      if refused then return refused end
    end
    give = give > 0 and read_resources(give, false)
    if take and takes_a_lock(take) then flags = bor(flags, LOCKS) end
  end

  local ends = next == END
  if with_state == 1 then states[#states + 1], states[#states + 2] = id, text() end
  if entries > 0 then
    local n = #entries_written
    entries_written[n + 1], entries_written[n + 2] = field, added
    happened[#happened + 1] = told
  else
    -- The newest entry is what it was.
    tail = sub(head, TAIL_AT, TEXTS_AT - 1) .. sub(tail, DIGEST_BYTES + 1)
  end
  if status ~= old_status then
    if not ends then count(status, 1) end
    count(old_status, -1)
  elseif ends then
    count(status, -1)
  end
  if ends then flags = bor(flags, ENDED) end
  put_head(id, pack(HEAD, seq + entries, flags, 0, status, now) .. tail)
  -- It stands. What is of the wrong type from here on is its own.
  if consumed > 0 and band(flags, MAIL) ~= 0 then call('LTRIM', inbox_key(id), consumed, -1) end
  if take then take_resources(id, take) end
  if give then give_resources(id, give) end
  for _ = 1, created do create_one(text()) end
  if ends then finish(id, value) end
  -- The workflow itself, if it ends with this commit, gets no more signals.
  for _ = 1, sent do
    local to = text()
    signal(to, text(), false)
  end
  if next == KEEP then return keep(id) end
  if not ends then
    local _, _, queue = unpacked(TEXTS, tail, DIGEST_BYTES + 1)
    park(id, next == AT and value, queue)
  end
  return DONE
end

local function holds(id, fence)
  local head = raw[id]
  return head and #head >= TEXTS_AT and band(flags_of(id), ENDED) == 0 and fence ~= 0 and fence_of(id) == fence
end

local function renew(id, fence)
  if not holds(id, fence) then return false end
  last(id)
  return true
end

local function hand_back(id, fence)
  if not holds(id, fence) then return end
  -- Nothing that was asked for under it before comes after this.
  touch(id)
  release(id)
  local _, _, queue = peek(id)
  make_due_anew(id, queue)
end

-- A token larger than any before, also than those of a store that was lost or put back from a backup: it
-- never falls behind the clock, in microseconds, and nobody grants a million leases in a second.
local function newest_fence()
  return math.max(tonumber(call('GET', KEY_FENCE) or 0), now * 1000)
end

-- Workflows that can't be granted, and why: what is kept of them is not of the form it should have.
local broken = {}

-- Nobody is granted it any more. Where its head can be read, that says so; where not, it is left for a person to look at.
local function set_aside(id, why)
  broken[#broken + 1] = { id, why }
  touch(id)
  void_lease(id)
  local head = raw[id]
  local ok, seq, flags, tries, status = pcall(unpacked, HEAD, head)
  local known, _, _, _, headline_at = pcall(unpacked, TEXTS, head, TEXTS_AT)
  if not ok or not known then return end
  put_head(id, pack('<IBHB', seq, flags, tries, QUARANTINED) .. sub(head, STATUS_AT + 1, headline_at - 1) .. why)
  count(status, -1)
  count(QUARANTINED, 1)
end

-- Can it be worked on by who serves these queues? If not, nobody has it any more: it is gone without having ended (somebody removed it by
-- hand), has ended (and was made due by hand), waits elsewhere, or is set aside.
local function is_fit(id, serves)
  local ok, fit = pcall(function()
    local head = raw[id]
    if not head then return void_lease(id) end
    -- An error if there are none.
    local _, _, queue = unpacked(TEXTS, head, TEXTS_AT)
    if band(flags_of(id), ENDED) ~= 0 then return void_lease(id) end
    if queue == '' then return set_aside(id, 'it has no queue') end
    if not serves[queue] then
      void_lease(id)
      return make_due_anew(id, queue)
    end
    unread(id)
    return true
  end)
  if not ok then return set_aside(id, its_own(fit)) end
  return fit
end

-- One more lease of it has expired without a commit.
local function count_try(id)
  local head = raw[id]
  local seq, flags, tries = unpacked('<IBH', head)
  put_head(id, pack('<IBH', seq, band(flags, MAIL + LOCKS + ENDED), math.min(tries + 1, 65535)) .. sub(head, STATUS_AT))
end

-- Leases that were granted to claims whose answer was lost: nobody knows of them, and they are due again.
local function take_back(lost, look_max)
  local is_lost = {}
  for _, ticket in ipairs(lost) do is_lost[ticket] = true end
  local leased = call('ZRANGE', KEY_LEASE, 0, look_max - 1)
  for from = 1, #leased, SLICE do
    local upto = math.min(from + SLICE - 1, #leased)
    local found = call('HMGET', KEY_HOLDERS, unpack(leased, from, upto))
    for i = from, upto do
      local id, who = leased[i], found[i - from + 1]
      if who and is_lost[match(who, '(%S+)$') or ''] then
        local seq, flags, queue = peek(id)
        if seq then
          void_lease(id)
          if band(flags, ENDED) == 0 then make_due_anew(id, queue) end
        end
      end
    end
  end
  settle_due()
end

-- Those of `queues` that have been due longest, at most `max`; and what takes them out.
local function find_due(queues, max)
  if #queues == 1 then
    local key = due_key(queues[1])
    local ids = call('ZRANGEBYSCORE', key, '-inf', NOW, 'LIMIT', 0, max)
    -- They stand first: removed by their places, which costs less than by their names.
    return ids, function()
      if #ids > 0 then call('ZREMRANGEBYRANK', key, 0, #ids - 1) end
    end
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
  return ids, function()
    for queue, taken in pairs(gone) do in_slices('ZREM', due_key(queue), taken) end
  end
end

-- Expired leases first, because their workflows have waited for a dead worker; then what has been due longest. Answers their ids, and the fence before
-- theirs: the first has the next one, and so on. What becomes due is not looked into here: this language would make a string of all of it. Who claims reads it
-- (granted.rs), and tells what is not fit to be worked on.
local function claim(max, until_text, worker, serves, queues)
  local claimed, leases, holders, granted, n = {}, {}, {}, {}, 0
  local fence = newest_fence()
  local function grant_all(ids, expired)
    load_holders(ids, 1, #ids)
    if expired then load_heads(ids, 1, #ids) end
    for i = 1, #ids do
      local id = ids[i]
      -- One may be due twice.
      if not granted[id] then
        -- Its lease has expired; or somebody has made it due by hand.
        if holder[id] then touch(id) end
        if not expired or is_fit(id, serves) then
          if expired then count_try(id) end
          n = n + 1
          claimed[n], granted[id] = id, true
          leases[2 * n - 1], leases[2 * n] = until_text, id
          holders[2 * n - 1], holders[2 * n] = id, pack('<d', fence + n) .. worker
        end
      end
    end
  end
  grant_all(call('ZRANGEBYSCORE', KEY_LEASE, '-inf', NOW, 'LIMIT', 0, max), true)
  local take_out
  if n < max then
    local ids
    ids, take_out = find_due(queues, max - n)
    grant_all(ids, false)
  end
  settle_heads()
  in_slices('HSET', KEY_HOLDERS, holders)
  in_slices('ZADD', KEY_LEASE, leases)
  if n > 0 then call('SET', KEY_FENCE, whole(fence + n)) end
  if take_out then take_out() end
  settle_due()
  settle_counts()
  return claimed, whole(fence)
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

local commits, renewals, returns = number(), number(), number()
local ids = place
place = place + commits + renewals + returns
load_heads(ARGV, ids + 1, place)
load_holders(ARGV, ids + 1, place)
-- Fences of the renewals, then of what is handed back.
local fences = text()
local function fence_at(i) return (unpacked('<d', fences, 8 * i - 7)) end
if commits + returns > 0 then remember() end

local reply = { NOW, LEASE_UNTIL, '', {}, '', '0', {}, false, broken, false }
local verdicts, renewed = {}, {}
for i = 1, commits do
  local ok, verdict = pcall(commit_one, ARGV[ids + i])
  if not ok then verdict = { 'broken', its_own(verdict) } end
  if type(verdict) == 'table' then
    verdicts[i] = OTHER
    reply[4][#reply[4] + 1] = verdict
  else
    verdicts[i] = verdict
  end
  place = after
end
local committed = ids
ids = ids + commits
for i = 1, renewals do renewed[i] = renew(ARGV[ids + i], fence_at(i)) and KEPT or FENCED end
ids = ids + renewals
for i = 1, returns do hand_back(ARGV[ids + i], fence_at(renewals + i)) end
-- A later commit may have sent it a signal, or freed what it waits for.
for i = 1, commits do
  if verdicts[i] == KEPT and flags_of(ARGV[committed + i]) ~= 0 then verdicts[i] = FLAGGED end
end
reply[3], reply[5] = table.concat(verdicts), table.concat(renewed)
settle_workflows()
settle_leases()
settle_opened()
settle_due()
settle_counts()
settle_events()
local claim_max, claim_until, lost_look_max = match(text(), '^(%S+) (%S+) (%S+)$')
claim_max, claim_until = tonumber(claim_max), whole(now + claim_until)
local worker, queues, lost = text(), read_texts(number()), read_texts(number())
local serves = {}
for _, queue in ipairs(queues) do serves[queue] = true end
local unfit, unfit_fences = read_texts(number()), text()
load_heads(unfit, 1, #unfit)
for i, id in ipairs(unfit) do
  if fence_of(id) == unpacked('<d', unfit_fences, 8 * i - 7) then is_fit(id, serves) end
end
if #lost > 0 then take_back(lost, tonumber(lost_look_max)) end
if claim_max >= 0 then
  local claimed, fence = claim(claim_max, claim_until, worker, serves, queues)
  reply[6], reply[7] = fence, claimed
  local next_look = earliest(queues)
  if next_look then reply[8] = whole(next_look) end
  if #claimed >= claim_max then
    -- Who claims has no place left, and will not hear of what is due then: somebody else has to.
    for _, queue in ipairs(queues) do rings[queue] = rings[queue] or 1 end
  elseif not (next_look and next_look <= now) then
    -- Nothing is left that a ring could be about.
    for _, queue in ipairs(queues) do
      call('DEL', bell_key(queue))
      rings[queue] = nil
    end
  end
end
settle_heads()
settle_due()
settle_counts()
settle_bell()
reply[10] = call('GET', HAND)
return reply
