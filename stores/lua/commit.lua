-- Apply writes and deletes in order, each as if it were alone.
--
-- ARGV[2] channel, [3] origin, [4] events kept per job, [5] attempts kept per job, [6] schema of the records, [7] the gate that new jobs
-- come through, or '' (docs/decisions/034); then per item 20 values and its events:
--   1 operation: I insert, U update, D delete     11 seq           16 cancel requested: 1 or ''
--   2 id                                          12 fence         17 refuse at so many waiting jobs, or ''
--   3 4 5 expected serial, seq, fence;            13 due or end, ms 18 record
--     of a new job 3 is its serial, or ''
--   6 flags: a the caller can decide again,       14 =key or ''    19 request (insert) or attempt ('' none)
--     l only while the lease is over              15 =owner or ''  20 how many events follow
--   7 queue  8 name  9 priority  10 status
-- Returns one answer per item: {C, serial} committed; {R, record, serial, overlay} removed; {X, ...} conflict, {X} without a record;
-- {D, ...} duplicate; {F, size} full. The answer {A, ...} is the last one: this item is to be decided again, those behind it were not looked at.
-- So is {G, gate}: the gate is another one by now.

local origin, keep, keep_attempts, schema, gate = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7]
local at = 8

local function answer(kind, id)
  local fields = readable(id)
  return {kind, fields[1], fields[2], fields[3]}
end

local function index(job, item)
  if job.status == 'Queued' then
    put_ready(job.queue, job.name, item[9], job.place)
  elseif job.status == 'Scheduled' then
    call('ZADD', tag .. 'due', item[13], job.place)
  elseif job.status == 'InProgress' then
    -- A claim sets the lease; whoever stays keeps his.
    call('ZADD', tag .. 'leases', 'NX', 0, job.place)
  else
    call('ZADD', tag .. 'ended', item[13], job.place)
  end
end

local function store(job, item, events)
  call('HSET', job_key(job.id), 'record', item[18], 'serial', job.serial, 'seq', item[11], 'fence', item[12],
    'status', item[10], 'queue', item[7], 'name', item[8], 'priority', item[9], 'cancel', item[16], 'schema', schema)
  append_events(job.id, events, keep)
end

local function is_full(item, joins)
  if not joins or item[17] == '' then return nil end
  local size = waiting(item[7])
  if size >= tonumber(item[17]) then return {'F', size} end
end

local function insert(item, events)
  local id, key, owner = item[2], text_of(item[14]), text_of(item[15])
  if gate ~= '' then
    local now_gate = call('HGET', meta, 'gate') or '0'
    if now_gate ~= gate then return {'G', now_gate} end
  end
  if call('EXISTS', job_key(id)) == 1 then return answer('D', id) end
  if key then
    local holder = call('GET', tag .. 'key:' .. key)
    if holder then return answer('D', holder) end
  end
  local full = is_full(item, is_waiting(item[10]))
  if full then return full end
  local serial = item[3] ~= '' and item[3] or tick()
  local job = {id = id, serial = serial, place = place_of(serial, id), queue = item[7], name = item[8], status = item[10]}
  store(job, item, events)
  call('HSET', job_key(id), 'request', item[19])
  if key then
    call('HSET', job_key(id), 'key', key)
    call('SET', tag .. 'key:' .. key, id)
  end
  if owner then
    call('HSET', job_key(id), 'owner', owner)
    call('ZADD', tag .. 'owner:' .. owner, 0, job.place)
  end
  index(job, item)
  list_under(job, nil, job.status)
  return {'C', serial}
end

local function is_expected(job, item)
  if job.serial ~= item[3] or job.seq ~= item[4] or job.fence ~= item[5] then return false end
  if not string.find(item[6], 'l', 1, true) then return true end
  return tonumber(call('ZSCORE', tag .. 'leases', job.place) or 'inf') <= now_ms
end

local function update(item, events)
  local job = load_job(item[2])
  if not job then return {'X'} end
  if not is_expected(job, item) then
    return answer(string.find(item[6], 'a', 1, true) and 'A' or 'X', job.id)
  end
  local full = is_full(item, is_waiting(item[10]) and not is_waiting(job.status))
  if full then return full end
  local before = job.status
  if before ~= 'InProgress' or item[10] ~= 'InProgress' then unindex(job) end
  store(job, item, events)
  call('HDEL', job_key(job.id), 'claim')
  job.name, job.status = item[8], item[10]
  index(job, item)
  list_under(job, before, job.status)
  if item[19] ~= '' then
    local key = tag .. 'attempts:' .. job.id
    if call('RPUSH', key, item[19]) > keep_attempts then call('LTRIM', key, -keep_attempts, -1) end
  end
  return {'C', job.serial}
end

local function delete(item)
  local job = load_job(item[2])
  if not job then return {'X'} end
  if not is_expected(job, item) then return answer('X', job.id) end
  local removed = answer('R', job.id)
  remove(job)
  return removed
end

local answers = {}
while at <= #ARGV do
  local item, events = {unpack(ARGV, at, at + 19)}, {}
  for index = 1, tonumber(item[20]) do events[index] = ARGV[at + 19 + index] end
  at = at + 20 + #events
  local operation = item[1]
  local result = operation == 'I' and insert(item, events) or operation == 'U' and update(item, events) or delete(item)
  answers[#answers + 1] = result
  if result[1] == 'A' or result[1] == 'G' then break end
end
publish(origin)
return answers
