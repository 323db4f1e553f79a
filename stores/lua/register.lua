-- Keep the registry of a store of several spaces: which space holds a name ('i' and an id, or 'k' and a key). docs/decisions/034 has the
-- protocol; stores/redis_registry.py the words.
--
-- ARGV[2...] operations, in order:
--   T name space gate serial     a try to bring in a job with that name is over: serial of the job that has the name now, '' if none was seen
--   R name space serial          the job with that serial is gone
--   V name entry serial gate     if the entry is this one still, nobody can bring in that name any more: serial of who has it, '' for nobody
--   B space gate n name...       a new job asks for n names, all or none
-- Returns one answer for each B: {serial} they are its; {'', gate} come again with that gate; {'', name, entry} that one is elsewhere.
--
-- names: hash of name -> "<space> <gate> <tries> <holders> <gone>": tries are under way through that gate; holders and gone are serials with
-- commas, or '-'. Without tries the entry is settled. open: names with tries -> when the last one began, ms.

local names, open = tag .. 'names', tag .. 'open'

local function read(name)
  local raw = call('HGET', names, name)
  if not raw then return nil end
  local space, gate, tries, holders, gone = string.match(raw, '^(%d+) (%d+) (%d+) (%S+) (%S+)$')
  return {raw = raw, space = space, gate = tonumber(gate), tries = tonumber(tries), holders = holders, gone = gone}
end

local function has(list, serial)
  return string.find(',' .. list .. ',', ',' .. serial .. ',', 1, true) ~= nil
end

local function add(list, serial)
  if has(list, serial) then return list end
  return list == '-' and serial or list .. ',' .. serial
end

local function without(list, serial)
  local rest = {}
  for one in string.gmatch(list, '%d+') do
    if one ~= serial then rest[#rest + 1] = one end
  end
  return #rest > 0 and table.concat(rest, ',') or '-'
end

local function write(name, entry)
  if entry.tries == 0 then
    call('ZREM', open, name)
    if entry.holders == '-' then
      call('HDEL', names, name)
      return
    end
    entry.gone = '-'
  end
  local words = {entry.space, digits(entry.gate), digits(entry.tries), entry.holders, entry.gone}
  call('HSET', names, name, table.concat(words, ' '))
end

local function try_over(name, space, gate, serial)
  local entry = read(name)
  -- Tries of another gate were counted out when it was shut.
  if not entry or entry.space ~= space or entry.gate ~= gate or entry.tries == 0 then return end
  entry.tries = entry.tries - 1
  if serial ~= '' and not has(entry.gone, serial) then entry.holders = add(entry.holders, serial) end
  write(name, entry)
end

local function gone(name, space, serial)
  local entry = read(name)
  if not entry or entry.space ~= space then return end
  entry.holders = without(entry.holders, serial)
  if entry.tries > 0 then entry.gone = add(entry.gone, serial) end
  write(name, entry)
end

local function resolve(name, raw, serial, gate)
  local entry = read(name)
  if not entry or entry.raw ~= raw then return end
  entry.tries, entry.gate, entry.holders = 0, gate, serial ~= '' and serial or '-'
  write(name, entry)
end

local function reserve(space, gate, wanted)
  local entries = {}
  for index, name in ipairs(wanted) do
    local entry = read(name)
    if entry and entry.space ~= space then return {'', name, entry.raw} end
    if entry and entry.tries > 0 and entry.gate > gate then return {'', digits(entry.gate)} end
    entries[index] = entry or {space = space, gate = gate, tries = 0, holders = '-', gone = '-'}
  end
  for index, name in ipairs(wanted) do
    local entry = entries[index]
    if entry.tries > 0 and entry.gate < gate then entry.tries = 0 end
    entry.gate = gate
    entry.tries = entry.tries + 1
    write(name, entry)
    call('ZADD', open, digits(now_ms), name)
  end
  return {tick()}
end

local at, answers = 2, {}
local function take(count)
  at = at + count
  return unpack(ARGV, at - count, at - 1)
end

while at <= #ARGV do
  local operation = take(1)
  if operation == 'T' then
    local name, space, gate, serial = take(4)
    try_over(name, space, tonumber(gate), serial)
  elseif operation == 'R' then
    gone(take(3))
  elseif operation == 'V' then
    local name, raw, serial, gate = take(4)
    resolve(name, raw, serial, tonumber(gate))
  else
    local space, gate, count = take(3)
    answers[#answers + 1] = reserve(space, tonumber(gate), {take(tonumber(count))})
  end
end
if last_tick then call('HSET', meta, 'tick', digits(last_tick)) end
return answers
