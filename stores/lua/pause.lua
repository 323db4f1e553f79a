-- Pause a queue or let it go on.
--
-- ARGV[2] channel, [3] origin, [4] queue, [5] 1 to pause
-- Returns 1 if that changed anything

local changed = call(ARGV[5] == '1' and 'SADD' or 'SREM', tag .. 'paused', ARGV[4])
if changed == 1 then
  call('HINCRBY', meta, 'queues', 1)
  call('PUBLISH', ARGV[2], ARGV[3])
end
return changed
