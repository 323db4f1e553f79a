-- ARGV[2] the layout that the caller knows, [3] how many spaces there are, [4] which of them this is
-- Writes these where there are none. Returns the layout and the number of spaces that are there.

call('HSETNX', meta, 'layout', ARGV[2])
call('HSETNX', meta, 'stride', ARGV[3])
call('HSETNX', meta, 'offset', ARGV[4])
return call('HMGET', meta, 'layout', 'stride')
