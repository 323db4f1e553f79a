-- What the registry says of names. ARGV[2...] names. Returns now in milliseconds, then the entry of each, '' without one.

local answers = {digits(now_ms)}
for at = 2, #ARGV do answers[at] = call('HGET', tag .. 'names', ARGV[at]) or '' end
return answers
