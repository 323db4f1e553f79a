-- A slice of the jobs, newest first, that fit a filter.
--
-- ARGV[2] below this serial (16 digits), [3] limit, [4] how many to look at, [5] =owner or '', [6] =name or '',
-- [7] =queue or '', [8...] statuses
-- Returns the serial to go on below ('' at the end), then {record, serial, overlay} each
--
-- Several sorted sets are merged; of each a chunk is read, and what lies below the end of any chunk waits for the next call.

local below, limit, chunk = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local owner, name, queue = text_of(ARGV[5]), text_of(ARGV[6]), text_of(ARGV[7])
local statuses, wanted = {unpack(ARGV, 8)}, {}
for _, status in ipairs(statuses) do wanted[status] = true end

local keys = {}
if owner then
  keys[1] = tag .. 'owner:' .. owner
else
  for index, status in ipairs(statuses) do keys[index] = tag .. 'list:' .. status end
end

local places, floor = {}, ''
for _, key in ipairs(keys) do
  local found = call('ZREVRANGEBYLEX', key, '(' .. below, '-', 'LIMIT', 0, chunk)
  for _, place in ipairs(found) do places[#places + 1] = place end
  if #found == chunk and found[chunk] > floor then floor = found[chunk] end
end
table.sort(places, function(one, other) return one > other end)

local answers, following = {''}, floor ~= '' and string.sub(floor, 1, 16) or ''
for _, place in ipairs(places) do
  if place < floor then break end
  local id = id_of(place)
  local fields = call('HMGET', job_key(id), 'status', 'name', 'queue')
  if wanted[fields[1]] and (not name or fields[2] == name) and (not queue or fields[3] == queue) then
    answers[#answers + 1] = readable(id)
    if #answers > limit then
      following = string.sub(place, 1, 16)
      break
    end
  end
end
answers[1] = following
return answers
