-- Remove jobs that ended before a time, the oldest end first, readable or not.
--
-- ARGV[2] that time in ms, [3] limit
-- Returns {id, serial, =key or ''} of each that was removed

local removed = {}
for _, place in ipairs(call('ZRANGEBYSCORE', tag .. 'ended', '-inf', '(' .. ARGV[2], 'LIMIT', 0, tonumber(ARGV[3]))) do
  local job = load_job(id_of(place))
  if job then
    remove(job)
    removed[#removed + 1] = {job.id, job.serial, job.key and '=' .. job.key or ''}
  else
    call('ZREM', tag .. 'ended', place)
  end
end
return removed
