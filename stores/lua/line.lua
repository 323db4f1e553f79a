-- The jobs that may run now, in line: what claim.lua and peek.lua have in common; stores/redis_scripts.py puts it before them.

local MOST_DUE = 500
local MOST_PASSED_OVER = 100

-- Make ready what fell due; false when there is more than one call makes ready.
local function promote()
  local due = call('ZRANGEBYSCORE', tag .. 'due', '-inf', now_ms, 'LIMIT', 0, MOST_DUE)
  for _, place in ipairs(due) do
    local values = call('HMGET', job_key(id_of(place)), 'queue', 'name', 'priority')
    if values[1] then put_ready(values[1], values[2], values[3], place) end
    call('ZREM', tag .. 'due', place)
  end
  return #due < MOST_DUE
end

local function first_of(key, skip, passed)
  local found = call('ZRANGE', key, skip, skip, 'WITHSCORES')
  return found[1] and {key = key, skip = skip, passed = passed, place = found[1], score = tonumber(found[2])}
end

-- The first of each ready set; ARGV[first] says how many queues follow, then come the queues, then the names.
local function open_heads(first)
  local heads, seen, last_queue = {}, {}, first + tonumber(ARGV[first])
  for at_queue = first + 1, last_queue do
    local queue = ARGV[at_queue]
    if call('SISMEMBER', tag .. 'paused', queue) == 0 then
      for at_name = last_queue + 1, #ARGV do
        local key = ready_key(queue, ARGV[at_name])
        local head = not seen[key] and first_of(key, 0, 0)
        seen[key] = true
        if head then heads[#heads + 1] = head end
      end
    end
  end
  return heads
end

local function best_of(heads)
  local best
  for index, head in ipairs(heads) do
    local other = best and heads[best]
    if not other or head.score < other.score or (head.score == other.score and head.place < other.place) then best = index end
  end
  return best
end

-- Show up to `limit` jobs to `take`, the first in line first; it answers 'taken' (out of the line), 'left' or 'stop'.
local function choose(first, limit, schema, take)
  local heads, shown = open_heads(first), 0
  while shown < limit do
    local best = best_of(heads)
    if not best then return end
    local head, following = heads[best], nil
    local written = call('HGET', job_key(id_of(head.place)), 'schema')
    if not written then
      -- Its key was removed by someone else.
      take_ready(head.key, head.place)
      following = first_of(head.key, head.skip, head.passed)
    elseif tonumber(written) > schema then
      -- Of a newer callboard: left to those who can read it.
      following = head.passed < MOST_PASSED_OVER and first_of(head.key, head.skip + 1, head.passed + 1)
    else
      local what = take(head)
      if what == 'stop' then return end
      shown = shown + 1
      following = first_of(head.key, head.skip + (what == 'left' and 1 or 0), head.passed)
    end
    if following then heads[best] = following else table.remove(heads, best) end
  end
end
