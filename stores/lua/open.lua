-- ARGV[2] the layout that the caller knows. Writes it where there is none. Returns the one that is there.

call('HSETNX', meta, 'layout', ARGV[2])
return call('HGET', meta, 'layout')
