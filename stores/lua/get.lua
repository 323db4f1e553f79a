-- ARGV[2...] ids. Returns {record, serial, overlay} each; no record, no values.

local answers = {}
for at = 2, #ARGV do answers[#answers + 1] = readable(ARGV[at]) end
return answers
