-- The first in line of these queues and names, taken by nobody: to compare with other spaces.
--
-- ARGV[2] limit, [3] newest schema that the caller reads, [4] how many queues follow, then the queues, then the names
-- Returns {1, score, place, score, place...}, or {0} when more jobs fell due than one call makes ready: call again.

if not promote() then return {0} end
local answers = {1}
choose(4, tonumber(ARGV[2]), tonumber(ARGV[3]), function(head)
  answers[#answers + 1] = digits(head.score)
  answers[#answers + 1] = head.place
  return 'left'
end)
return answers
