-- How many jobs of each queue and name a claim may take.
--
-- Returns pairs of "<length of the queue>:<queue>:<name>" and how many

local answers = {}
for _, pair in ipairs(call('SMEMBERS', tag .. 'pairs')) do
  answers[#answers + 1] = pair
  answers[#answers + 1] = call('ZCARD', tag .. 'ready:' .. pair)
end
return answers
