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

-- What was read and written here, to be stored in the end with one call of each kind; false: there is no entry.
local entries, changed, asked = {}, {}, {}

local function raw_of(name)
  if entries[name] == nil then entries[name] = call('HGET', names, name) end
  return entries[name]
end

local function put(name, raw)
  entries[name], changed[name] = raw, true
end

local function read(name)
  local raw = raw_of(name)
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
    if entry.holders == '-' then return put(name, false) end
    entry.gone = '-'
  end
  put(name, table.concat({entry.space, digits(entry.gate), digits(entry.tries), entry.holders, entry.gone}, ' '))
end

local function try_over(name, space, gate, serial)
  local head = space .. ' ' .. gate
  -- The only try of a new name, as a rule.
  if raw_of(name) == head .. ' 1 - -' then return put(name, serial ~= '' and head .. ' 0 ' .. serial .. ' -') end
  local entry = read(name)
  -- Tries of another gate were counted out when it was shut.
  if not entry or entry.space ~= space or entry.gate ~= tonumber(gate) or entry.tries == 0 then return end
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
  local found = {}
  for index, name in ipairs(wanted) do
    local entry = read(name)
    if entry and entry.space ~= space then return {'', name, entry.raw} end
    if entry and entry.tries > 0 and entry.gate > tonumber(gate) then return {'', digits(entry.gate)} end
    found[index] = entry or false
  end
  for index, name in ipairs(wanted) do
    local entry = found[index]
    asked[name] = true
    if not entry then
      put(name, space .. ' ' .. gate .. ' 1 - -')
    else
      if entry.gate < tonumber(gate) then entry.tries = 0 end
      entry.gate = tonumber(gate)
      entry.tries = entry.tries + 1
      write(name, entry)
    end
  end
  return {tick()}
end

-- Many values of one call of Redis, in portions that Lua can pass.
local function in_portions(command, key, values)
  for first = 1, #values, 1000 do
    call(command, key, unpack(values, first, math.min(first + 999, #values)))
  end
end

local function store_changes()
  local sets, removals, tried, settled = {}, {}, {}, {}
  local now = digits(now_ms)
  for name in pairs(changed) do
    local raw = entries[name]
    if raw then
      sets[#sets + 1] = name
      sets[#sets + 1] = raw
    else
      removals[#removals + 1] = name
    end
    if not raw or string.find(raw, '^%d+ %d+ 0 ') then
      settled[#settled + 1] = name
    elseif asked[name] then
      tried[#tried + 1] = now
      tried[#tried + 1] = name
    end
  end
  in_portions('HSET', names, sets)
  in_portions('HDEL', names, removals)
  in_portions('ZADD', open, tried)
  in_portions('ZREM', open, settled)
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
    try_over(name, space, gate, serial)
  elseif operation == 'R' then
    gone(take(3))
  elseif operation == 'V' then
    local name, raw, serial, gate = take(4)
    resolve(name, raw, serial, tonumber(gate))
  else
    local space, gate, count = take(3)
    answers[#answers + 1] = reserve(space, gate, {take(tonumber(count))})
  end
end
store_changes()
if last_tick then call('HSET', meta, 'tick', digits(last_tick)) end
return answers
