-- The jobs whose lease is over, the longest first; who reads them decides and commits on condition that it is over still.
--
-- ARGV[2] limit
-- Returns now in milliseconds, then {id, fence, record, serial, overlay} each

local answers = {digits(now_ms)}
for _, place in ipairs(call('ZRANGEBYSCORE', tag .. 'leases', '-inf', now_ms, 'LIMIT', 0, tonumber(ARGV[2]))) do
  local id = id_of(place)
  local fields = readable(id)
  if fields[2] then
    answers[#answers + 1] = {id, call('HGET', job_key(id), 'fence'), fields[1], fields[2], fields[3]}
  else
    -- Its key was removed by someone else.
    call('ZREM', tag .. 'leases', place)
  end
end
return answers
