-- Some of the registry's entries, so that in the end all are looked at. ARGV[2] cursor, '0' at first, [3] about how many
-- Returns the next cursor ('0' at the end), then name, entry, name, entry...

local found = call('HSCAN', tag .. 'names', ARGV[2], 'COUNT', tonumber(ARGV[3]))
return {found[1], unpack(found[2])}
