-- Choose and mark, in one step: jobs of these queues and names that may run now, by priority, then order of acceptance.
--
-- ARGV[2] channel, [3] origin, [4] events kept per job, [5] worker, [6] limit, [7] lease, ms, [8] newest schema that the caller reads,
-- [9] how many queues follow, then the queues, then the names
-- Returns {1, {id, record, serial, overlay, request}...}, or {0} when more jobs fell due than one call makes ready: call again.
--
-- The mark is the overlay "<now_ms> <fence> <worker>" beside the record: whoever reads the job makes of both what the rules say
-- (decide(record, Claim)), so that no rule is written here. The event is the overlay with the record, to be read in the same way.

local origin, keep, worker, limit, lease_ms, schema =
  ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local MOST_DUE = 500
local MOST_PASSED_OVER = 100

local function promote()
  local due = call('ZRANGEBYSCORE', tag .. 'due', '-inf', now_ms, 'LIMIT', 0, MOST_DUE)
  for _, place in ipairs(due) do
    local values = call('HMGET', job_key(id_of(place)), 'queue', 'name', 'priority')
    if values[1] then put_ready(values[1], values[2], values[3], place) end
    call('ZREM', tag .. 'due', place)
  end
  return #due < MOST_DUE
end

local function first_of(key, skip)
  local found = call('ZRANGE', key, skip, skip, 'WITHSCORES')
  return found[1] and {key = key, skip = skip, place = found[1], score = tonumber(found[2])}
end

local function open_heads()
  local heads, seen, last_queue = {}, {}, 9 + tonumber(ARGV[9])
  for at_queue = 10, last_queue do
    local queue = ARGV[at_queue]
    if call('SISMEMBER', tag .. 'paused', queue) == 0 then
      for at_name = last_queue + 1, #ARGV do
        local key = ready_key(queue, ARGV[at_name])
        local head = not seen[key] and first_of(key, 0)
        seen[key] = true
        if head then heads[#heads + 1] = head end
      end
    end
  end
  return heads
end

local function best_of(heads)
  local best
  for index, head in ipairs(heads) do
    local other = best and heads[best]
    if not other or head.score < other.score or (head.score == other.score and head.place < other.place) then best = index end
  end
  return best
end

local function mark(id, key, place)
  local fields = call('HMGET', job_key(id), 'record', 'serial', 'seq', 'status', 'queue', 'request')
  local fence = tick()
  local overlay = table.concat({digits(now_ms), fence, worker}, ' ')
  local seq = digits(tonumber(fields[3]) + 1)
  call('HSET', job_key(id), 'claim', overlay, 'seq', seq, 'fence', fence, 'status', 'InProgress')
  take_ready(key, place)
  call('ZADD', tag .. 'leases', now_ms + lease_ms, place)
  list_under({place = place, queue = fields[5]}, fields[4], 'InProgress')
  append_events(id, {seq .. ' @' .. overlay .. '\n' .. fields[2] .. ' ' .. (fields[1] or '')}, keep)
  return {id, fields[1] or '', fields[2], overlay, fields[6] or ''}
end

if not promote() then return {0} end
local heads, answers = open_heads(), {1}
while #answers <= limit do
  local best = best_of(heads)
  if not best then break end
  local head = heads[best]
  local id, following = id_of(head.place), nil
  if tonumber(call('HGET', job_key(id), 'schema')) > schema then
    -- Of a newer callboard: left to those who can read it.
    following = head.skip < MOST_PASSED_OVER and first_of(head.key, head.skip + 1)
  else
    answers[#answers + 1] = mark(id, head.key, head.place)
    following = first_of(head.key, head.skip)
  end
  if following then heads[best] = following else table.remove(heads, best) end
end
publish(origin)
return answers
