-- Names whose tries should be over long since, the oldest first; who asked for them may have died.
--
-- ARGV[2] older than so many ms, [3] limit. Returns name, entry, name, entry...

local answers = {}
for _, name in ipairs(call('ZRANGEBYSCORE', tag .. 'open', '-inf', now_ms - tonumber(ARGV[2]), 'LIMIT', 0, tonumber(ARGV[3]))) do
  answers[#answers + 1] = name
  answers[#answers + 1] = call('HGET', tag .. 'names', name) or ''
end
return answers
