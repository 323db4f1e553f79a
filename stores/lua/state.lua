-- The space as a whole.
--
-- Returns now in ms, when the next scheduled job falls due ('' never), when the next lease ends ('' never), {counts}, {paused queues},
-- position of the notes, changes of queues

local function first_score(key)
  return call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or ''
end

return {digits(now_ms), first_score(tag .. 'due'), first_score(tag .. 'leases'), call('HGETALL', tag .. 'counts'),
  call('SMEMBERS', tag .. 'paused'), call('HGET', meta, 'position') or '0', call('HGET', meta, 'queues') or '0'}
