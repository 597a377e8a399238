-- Admit one request, all or nothing: key, limits and money in one step.
-- KEYS  1 epoch  2 float run  3 key  4 requests of this minute  5 concurrency  then per purse: float, reservations;
--       then the counters of further limits
-- ARGV  1 run_id  2 key version  3 standing ('live' or why not)  4 key expiry ms ('' none)
--       5 price from ms  6 price until ms ('' open)  7 requests per minute  8 concurrency
--       9 request id  10 amount  11 longest request ms  12 index of the last purse's last key
--       then per counter: what to take, that less its limit, the limit, when it may be forgotten (Unix seconds)
-- Returns cause, time ms, then: admitted -> requests left, purse number (0 none), generation, left of each counter;
-- short -> free, dry; over -> which counter, what it held.
-- Money is decimal text that Redis adds; a script's numbers are doubles, so only signs are looked at here.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local stamp = string.format('%.0f', now)

local found = redis.call('MGET', KEYS[1], KEYS[2], KEYS[4])
if not found[1] or found[2] ~= ARGV[1] then return {'incomplete', stamp} end

local version = redis.call('HGET', KEYS[3], 'v')
if not version then return {'unknown', stamp} end
if version ~= ARGV[2] then return {'stale', stamp} end
if ARGV[3] ~= 'live' then return {ARGV[3], stamp} end
if ARGV[4] ~= '' and now >= tonumber(ARGV[4]) then return {'expired', stamp} end
if now < tonumber(ARGV[5]) or (ARGV[6] ~= '' and now >= tonumber(ARGV[6])) then return {'repriced', stamp} end

local used = tonumber(found[3] or '0')
if used >= tonumber(ARGV[7]) then return {'rpm', stamp} end
local open = redis.call('ZCARD', KEYS[5])
if open >= tonumber(ARGV[8]) then
  open = open - redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', stamp)
  if open >= tonumber(ARGV[8]) then return {'concurrency', stamp} end
end

local purses = tonumber(ARGV[12])
local function give_back(last)
  for i = purses + 1, last do redis.call('DECRBY', KEYS[i], ARGV[4 * (i - purses) + 9]) end
end
local left = {}
for i = purses + 1, #KEYS do
  local at = 4 * (i - purses) + 9
  local beyond = redis.call('INCRBY', KEYS[i], ARGV[at + 1])
  redis.call('INCRBY', KEYS[i], ARGV[at + 2])
  redis.call('EXPIREAT', KEYS[i], ARGV[at + 3])
  if beyond > 0 then
    give_back(i)
    return {'over', stamp, tostring(i - purses), redis.call('GET', KEYS[i])}
  end
  left[i - purses] = string.format('%.0f', -beyond)
end

local expiry = string.format('%.0f', now + tonumber(ARGV[11]))
local purse, generation = 0, ''
if ARGV[10] ~= '0' then
  for i = 6, purses, 2 do
    generation = redis.call('HGET', KEYS[i], 'gen')
    if generation then
      if redis.call('HINCRBY', KEYS[i], 'free', '-' .. ARGV[10]) >= 0 then
        purse = (i - 4) / 2
        redis.call('HSET', KEYS[i + 1], ARGV[9], generation .. '|' .. ARGV[10] .. '|' .. expiry)
        break
      end
      redis.call('HINCRBY', KEYS[i], 'free', ARGV[10])
    end
  end
  if purse == 0 then
    give_back(#KEYS)
    local last = redis.call('HMGET', KEYS[purses - 1], 'free', 'dry')
    return {'short', stamp, last[1] or '0', last[2] or '0'}
  end
end

redis.call('INCR', KEYS[4])
redis.call('ZADD', KEYS[5], expiry, ARGV[9])
-- Both keys outlive what they hold: every minute begins with a counter of 0, and no set lives past its last member.
if used == 0 then redis.call('EXPIRE', KEYS[4], 120) end
if used == 0 or open == 0 then
  redis.call('PEXPIREAT', KEYS[5], string.format('%.0f', now + tonumber(ARGV[11]) + 120000))
end
return {'admitted', stamp, tostring(tonumber(ARGV[7]) - used - 1), tostring(purse), generation, unpack(left)}
