-- End one reservation: settle, release and abandon differ only in what is given back.
-- KEYS  1 concurrency  2 float  3 reservations (2 and 3 absent where nothing was reserved)  then counters
-- ARGV  1 request id  2 amount to give back  then per counter what corrects it
-- Gives back only what is still reserved, in the generation it was taken from. Returns 1 if it did, else 0.
local counters = #ARGV - 2
local ours = redis.call('ZREM', KEYS[1], ARGV[1])
for i = 1, counters do
  local name = KEYS[#KEYS - counters + i]
  if ours == 1 and redis.call('EXISTS', name) == 1 then redis.call('INCRBY', name, ARGV[i + 2]) end
end
if #KEYS == counters + 1 then return 0 end
local reserved = redis.call('HGET', KEYS[3], ARGV[1])
if not reserved then return 0 end
redis.call('HDEL', KEYS[3], ARGV[1])
if string.match(reserved, '^[^|]+') ~= redis.call('HGET', KEYS[2], 'gen') then return 0 end
redis.call('HINCRBY', KEYS[2], 'free', ARGV[2])
return 1
