-- The events that others have committed since a position, read from the jobs that the notes name.
--
-- ARGV[2] origin whose own events are left out, [3] position, [4] how many events are enough
-- Returns position reached, changes of queues, 1 if nothing is missing, {the events as they are stored}, newest position

local origin, seen, enough = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local values = call('HMGET', meta, 'position', 'queues')
local newest, complete, answers = tonumber(values[1] or '0'), 1, {}
local reached = newest

local function read(id, first, last, wanted)
  local found, newest_seq = 0, call('HGET', job_key(id), 'seq')
  local most = newest_seq and tonumber(newest_seq) - first + 1 or 0
  if most > 0 then
    for _, event in ipairs(call('LRANGE', tag .. 'events:' .. id, -most, -1)) do
      local seq = tonumber(string.match(event, '^%d+'))
      if seq > last then break end
      if seq >= first then
        answers[#answers + 1] = event
        found = found + 1
      end
    end
  end
  if found ~= wanted then complete = 0 end
end

local oldest = call('XRANGE', tag .. 'notes', '-', '+', 'COUNT', 1)[1]
local known_from = newest
if oldest then known_from = tonumber(string.match(oldest[1], '^%d+')) - tonumber(oldest[2][4]) end
if seen < known_from or seen > newest then complete = 0 end

if seen < newest then
  for _, entry in ipairs(call('XRANGE', tag .. 'notes', '(' .. digits(seen), '+', 'COUNT', 200)) do
    reached = tonumber(string.match(entry[1], '^%d+'))
    local fields = entry[2]
    if fields[2] ~= origin then
      for id, first, last, size in string.gmatch(fields[6], '(%S+) (%d+) (%d+) (%d+)') do
        read(id, tonumber(first), tonumber(last), tonumber(size))
      end
    end
    if #answers >= enough then break end
  end
end
return {digits(reached), values[2] or '0', complete, answers, digits(newest)}
