-- ARGV[2] id. Returns the records of its ended attempts, oldest first.

return call('LRANGE', tag .. 'attempts:' .. ARGV[2], 0, -1)
