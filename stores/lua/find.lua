-- Who owns a name in this space: 'i' and an id, or 'k' and a key.
--
-- ARGV[2...] names. Returns {record, serial, overlay} each; no owner, no values.

local answers = {}
for at = 2, #ARGV do
  local kind, text = string.sub(ARGV[at], 1, 1), string.sub(ARGV[at], 2)
  local id = kind == 'i' and text or call('GET', tag .. 'key:' .. text)
  local fields = id and readable(id) or {}
  answers[#answers + 1] = fields[1] and fields or {}
end
return answers
