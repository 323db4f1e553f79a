-- Shut a gate for good: no job comes in through it, or an earlier one, after this.
--
-- ARGV[2] the gate. Returns the one that is open now.

local gate = tonumber(call('HGET', meta, 'gate') or '0')
if gate <= tonumber(ARGV[2]) then
  gate = tonumber(ARGV[2]) + 1
  call('HSET', meta, 'gate', digits(gate))
end
return gate
