-- ARGV[2] the layout that the caller knows, [3] how many spaces there are, [4] which of them this is; '' for their registry
-- Writes these where there are none. Returns the layout and how many spaces there are.

call('HSETNX', meta, 'layout', ARGV[2])
call('HSETNX', meta, 'spaces', ARGV[3])
if ARGV[4] ~= '' then call('HSETNX', meta, 'number', ARGV[4]) end
return call('HMGET', meta, 'layout', 'spaces')
