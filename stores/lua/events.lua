-- A job's events after a seq, oldest first.
--
-- ARGV[2] id, [3] after, [4] limit
-- Returns them as they are stored

local after, limit = tonumber(ARGV[3]), tonumber(ARGV[4])
local key, newest, answers = tag .. 'events:' .. ARGV[2], call('HGET', job_key(ARGV[2]), 'seq'), {}
if not newest then return answers end
-- Seqs may have gaps, so there are at most as many as the numbers between.
local most = tonumber(newest) - after
if most <= 0 then return answers end
for _, event in ipairs(call('LRANGE', key, -most, -1)) do
  if #answers == limit then break end
  if tonumber(string.match(event, '^%d+')) > after then answers[#answers + 1] = event end
end
return answers
