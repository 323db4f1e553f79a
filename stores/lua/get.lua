-- ARGV[2...] ids. Returns {record, serial, overlay} each; no record, no values.

local answers = {}
for at = 2, #ARGV do
  local fields = readable(ARGV[at])
  answers[#answers + 1] = fields[1] and fields or {}
end
return answers
