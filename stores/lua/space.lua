-- What every script of a space begins with; stores/redis_scripts.py puts it before them. docs/stores.md describes the keys.
--
-- KEYS[1]  <tag>meta   names the space; every other key is <tag> and a name, in the same slot
-- ARGV[1]  the clock in milliseconds since the epoch, or '' for the server's own
--
-- A job's place, "<serial, 16 digits><id>", is its name in every sorted set: it sorts by order of acceptance.
-- Scripts do not roll back: each checks before it writes.

local meta = KEYS[1]
local tag = string.sub(meta, 1, -5)
local call = redis.call

local JOB_FIELDS = {'serial', 'seq', 'fence', 'status', 'queue', 'name', 'key', 'owner'}

local function digits(number)
  return string.format('%.0f', number)
end

-- Microseconds since the epoch; a double holds them exactly until the year 2255.
local function now_us()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) * 1000 end
  local now = call('TIME')
  return tonumber(now[1]) * 1000000 + tonumber(now[2])
end

local started_us = now_us()
local now_ms = math.floor(started_us / 1000)

-- Serials and fences: they grow and are never given twice, not even when a crash of the server took back the last of them. Of several
-- spaces, each gives those that are its own number modulo how many there are.
local last_tick, spaces, number
local function tick()
  if not last_tick then
    local known = call('HMGET', meta, 'tick', 'spaces', 'number')
    last_tick, spaces, number = tonumber(known[1] or '0'), tonumber(known[2]), tonumber(known[3])
  end
  last_tick = math.max(last_tick + 1, started_us)
  if number then last_tick = last_tick + (number - last_tick) % spaces end
  return digits(last_tick)
end

-- Of an argument that may be missing: '' is none, '=' stands before a text.
local function text_of(argument)
  return argument ~= '' and string.sub(argument, 2) or nil
end

local function place_of(serial, id)
  return string.rep('0', 16 - #serial) .. serial .. id
end

local function id_of(place)
  return string.sub(place, 17)
end

local function job_key(id)
  return tag .. 'job:' .. id
end

-- A queue may have any name, a colon in it too: its length tells where it ends.
local function ready_key(queue, name)
  return tag .. 'ready:' .. #queue .. ':' .. queue .. ':' .. name
end

-- Beside the sets of ready jobs, the names of those that are not empty: what follows "ready:" in their keys.
local function put_ready(queue, name, priority, place)
  local key = ready_key(queue, name)
  call('ZADD', key, -tonumber(priority), place)
  call('SADD', tag .. 'pairs', string.sub(key, #tag + 7))
end

local function take_ready(key, place)
  if call('ZREM', key, place) == 1 and call('EXISTS', key) == 0 then call('SREM', tag .. 'pairs', string.sub(key, #tag + 7)) end
end

-- The scalars of a stored job, or nil.
local function load_job(id)
  local values = call('HMGET', job_key(id), unpack(JOB_FIELDS))
  if not values[1] then return nil end
  local job = {id = id, place = place_of(values[1], id)}
  for index, field in ipairs(JOB_FIELDS) do job[field] = values[index] end
  return job
end

-- What a reader makes a job of: {record, serial, overlay}, or {}; the overlay "<now_ms> <fence> <worker>" is of a claim that no write has
-- followed.
local function readable(id)
  local values = call('HMGET', job_key(id), 'record', 'serial', 'claim')
  return values[2] and {values[1] or '', values[2], values[3] or ''} or {}
end

local function count(queue, status, change)
  local field = queue .. '/' .. status
  if call('HINCRBY', tag .. 'counts', field, change) == 0 then call('HDEL', tag .. 'counts', field) end
end

local function is_waiting(status)
  return status == 'Queued' or status == 'Scheduled'
end

local function waiting(queue)
  local sizes = call('HMGET', tag .. 'counts', queue .. '/Queued', queue .. '/Scheduled')
  return tonumber(sizes[1] or '0') + tonumber(sizes[2] or '0')
end

-- Take a job out of the index that its status put it into.
local function unindex(job)
  if is_waiting(job.status) then
    take_ready(ready_key(job.queue, job.name), job.place)
    call('ZREM', tag .. 'due', job.place)
  elseif job.status == 'InProgress' then
    call('ZREM', tag .. 'leases', job.place)
  else
    call('ZREM', tag .. 'ended', job.place)
  end
end

-- Move a job from the list of one status to that of another; nil for none.
local function list_under(job, before, after)
  if before == after then return end
  if before then
    call('ZREM', tag .. 'list:' .. before, job.place)
    count(job.queue, before, -1)
  end
  if after then
    call('ZADD', tag .. 'list:' .. after, 0, job.place)
    count(job.queue, after, 1)
  end
end

local function remove(job)
  unindex(job)
  list_under(job, job.status, nil)
  call('DEL', job_key(job.id), tag .. 'events:' .. job.id, tag .. 'attempts:' .. job.id)
  if job.key then call('DEL', tag .. 'key:' .. job.key) end
  if job.owner then call('ZREM', tag .. 'owner:' .. job.owner, job.place) end
end

-- Events, each "<seq> <payload>", and the note of them for the other processes: "<id> <first seq> <last seq> <how many>".
local notes = {}
local noted = 0
local function append_events(id, events, keep)
  if #events == 0 then return end
  local key = tag .. 'events:' .. id
  if call('RPUSH', key, unpack(events)) > keep then call('LTRIM', key, -keep, -1) end
  local first, last = string.match(events[1], '^%d+'), string.match(events[#events], '^%d+')
  notes[#notes + 1] = table.concat({id, first, last, #events}, ' ')
  noted = noted + #events
end

-- A note stands at the position of its last event, so what was cut off from the stream can be told from what never was.
local NOTED_EVENTS = 20000
local function publish(origin)
  if last_tick then call('HSET', meta, 'tick', digits(last_tick)) end
  if noted > 0 then
    local position = call('HINCRBY', meta, 'position', noted)
    call('XADD', tag .. 'notes', 'MINID', '~', math.max(0, position - NOTED_EVENTS), position .. '-0',
      'origin', origin, 'size', noted, 'events', table.concat(notes, '\n'))
    call('PUBLISH', ARGV[2], origin)
  end
end
