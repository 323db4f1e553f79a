-- Choose and mark, in one step: jobs of these queues and names that may run now, by priority, then order of acceptance.
--
-- ARGV[2] channel, [3] origin, [4] events kept per job, [5] worker, [6] limit, [7] lease, ms, [8] newest schema that the caller reads,
-- [9] score and [10] place of the last in line that may be taken, or '' for all of them; [11] how many queues follow, then the queues, then
-- the names
-- Returns {1, {id, record, serial, overlay, request}...}, or {0} when more jobs fell due than one call makes ready: call again.
--
-- The mark is the overlay "<now_ms> <fence> <worker>" beside the record: whoever reads the job makes of both what the rules say
-- (decide(record, Claim)), so that no rule is written here. The event is the overlay with the record, to be read in the same way.

local origin, keep, worker, limit, lease_ms, schema =
  ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local last_score, last_place = tonumber(ARGV[9]), ARGV[10]

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
local answers = {1}
choose(11, limit, schema, function(head)
  if last_score and (head.score > last_score or (head.score == last_score and head.place > last_place)) then return 'stop' end
  answers[#answers + 1] = mark(id_of(head.place), head.key, head.place)
  return 'taken'
end)
publish(origin)
return answers
