-- Let leases end later, as far as they are still held.
--
-- ARGV[2] milliseconds from now; then pairs of id and fence
-- Returns one number each: 0 lost, 1 held, 2 held and a cancel was asked for

local until_ms, answers = now_ms + tonumber(ARGV[2]), {}
for at = 3, #ARGV, 2 do
  local id, fence = ARGV[at], ARGV[at + 1]
  local fields = call('HMGET', job_key(id), 'serial', 'fence', 'status', 'cancel')
  local result = 0
  if fields[1] and fields[2] == fence and fields[3] == 'InProgress' then
    call('ZADD', tag .. 'leases', 'XX', until_ms, place_of(fields[1], id))
    result = fields[4] == '1' and 2 or 1
  end
  answers[#answers + 1] = result
end
return answers
