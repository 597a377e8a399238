"""The gateways' floats in Redis: every change is one script that checks run, generation and transfer number.

A script does no arithmetic on money (its numbers are doubles): HINCRBY adds decimal text, a script
looks only at signs. Transfer numbers are small, so they may be compared.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import redis

from kernel import wire
from kernel.clock import from_ms

# KEYS float, run, floats; ARGV run_id, generation. 1 the float exists in this generation, 2 made now, -1 fence.
_OPEN = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return -1 end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'gen', ARGV[2], 'transfer', '0', 'free', '0', 'dry', '0')
  redis.call('SADD', KEYS[3], KEYS[1])
  return 2
end
return redis.call('HGET', KEYS[1], 'gen') == ARGV[2] and 1 or -1
"""
# KEYS float, run; ARGV run_id, generation, transfer, amount. 1 applied, 0 had been applied, -1 fence.
_LEND = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', KEYS[1], 'gen') ~= ARGV[2] then return -1 end
local last = tonumber(redis.call('HGET', KEYS[1], 'transfer'))
if tonumber(ARGV[3]) <= last then return 0 end
if tonumber(ARGV[3]) ~= last + 1 then return -1 end
redis.call('HINCRBY', KEYS[1], 'free', ARGV[4])
redis.call('HSET', KEYS[1], 'transfer', ARGV[3])
return 1
"""
# KEYS float, run, pending; ARGV run_id, generation, transfer, amount. 1 taken, 0 less than that is free, -1 fence.
_TAKE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', KEYS[1], 'gen') ~= ARGV[2] then return -1 end
if tonumber(ARGV[3]) ~= tonumber(redis.call('HGET', KEYS[1], 'transfer')) + 1 then return -1 end
if redis.call('HINCRBY', KEYS[1], 'free', '-' .. ARGV[4]) < 0 then
  redis.call('HINCRBY', KEYS[1], 'free', ARGV[4])
  return 0
end
redis.call('HSET', KEYS[1], 'transfer', ARGV[3])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
return 1
"""
# KEYS float, run; ARGV run_id, generation, dry.
_DRY = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', KEYS[1], 'gen') ~= ARGV[2] then return -1 end
redis.call('HSET', KEYS[1], 'dry', ARGV[3])
return 1
"""
# KEYS reservations; ARGV grace in ms. Flat list of ids and values of those that expired longer ago.
_EXPIRED = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local all, expired = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  if tonumber(string.match(all[i + 1], '[^|]+$')) + tonumber(ARGV[1]) < now then
    expired[#expired + 1] = all[i]
    expired[#expired + 1] = all[i + 1]
  end
end
return expired
"""
# KEYS float, reservations; ARGV id, value as it was seen, amount. 1 ended now, 0 somebody else ended it.
_END = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if string.match(ARGV[2], '^[^|]+') == redis.call('HGET', KEYS[1], 'gen') then
  redis.call('HINCRBY', KEYS[1], 'free', ARGV[3])
end
return 1
"""


class Fenced(Exception):
    """This Redis is not the one that was lent to, or has lost a float: a new generation must begin."""


@dataclass(frozen=True, slots=True)
class State:
    """A float as Redis has it, `created` only now; `pending` maps transfers to amounts on their way back."""

    created: bool
    transfer: int
    free: int
    dry: bool
    pending: dict[int, int]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one request took from a float, pico-units; `value` as Redis has it."""

    request_id: UUID
    value: str
    amount: int
    expires_at: datetime


class Floats:
    """The floats of one Redis in one run and generation."""

    def __init__(self, client: redis.Redis, *, run_id: str, generation: int) -> None:
        self._client = client
        self.run_id = run_id
        self.generation = generation

    def open(self, name: str) -> State:
        """The float, made empty if it was never there. Fenced where this Redis is another one."""
        found = self._script(_OPEN, [name, wire.FLOAT_RUN, wire.FLOATS], [self.run_id, self.generation])
        raw = wire.decode_hash(cast("dict[bytes, bytes]", self._client.hgetall(name)))
        pending = wire.decode_hash(cast("dict[bytes, bytes]", self._client.hgetall(wire.pending(name))))
        if not raw:
            raise Fenced(f"{name} is gone")
        return State(
            created=found == 2,
            transfer=int(raw["transfer"]),
            free=int(raw["free"]),
            dry=raw["dry"] == "1",
            pending={int(number): int(amount) for number, amount in pending.items()},
        )

    def lend(self, name: str, *, transfer: int, amount: int) -> None:
        """Add money as that transfer; one that was added already adds nothing."""
        self._script(_LEND, [name, wire.FLOAT_RUN], [self.run_id, self.generation, transfer, amount])

    def take(self, name: str, *, transfer: int, amount: int) -> bool:
        """Move free money into `pending`; False where less than that is free."""
        arguments = [self.run_id, self.generation, transfer, amount]
        return self._script(_TAKE, [name, wire.FLOAT_RUN, wire.pending(name)], arguments) == 1

    def taken(self, name: str, *, transfer: int) -> None:
        """That transfer is back in PostgreSQL."""
        self._client.hdel(wire.pending(name), str(transfer))

    def mark_dry(self, name: str, *, dry: bool) -> None:
        """Say whether the lender has nothing more for this float."""
        self._script(_DRY, [name, wire.FLOAT_RUN], [self.run_id, self.generation, int(dry)])

    def expired(self, name: str, *, grace_ms: int) -> list[Reservation]:
        """Reservations of requests that cannot be running any more."""
        flat = [item.decode() for item in self._client.eval(_EXPIRED, 1, wire.reservations(name), grace_ms)]
        return [_reservation(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]

    def end(self, name: str, reservation: Reservation, *, give_back: int) -> bool:
        """End a reservation and free so much of it in its own generation; False where it has ended otherwise."""
        keys = [name, wire.reservations(name)]
        arguments = [str(reservation.request_id), reservation.value, give_back]
        return self._script(_END, keys, arguments) == 1

    def _script(self, script: str, keys: list[str], arguments: list[Any]) -> int:
        answer = int(self._client.eval(script, len(keys), *keys, *arguments))
        if answer < 0:
            raise Fenced(keys[0])
        return answer


def _reservation(request_id: str, value: str) -> Reservation:
    _, amount, expiry_ms = value.split("|")
    return Reservation(UUID(request_id), value, int(amount), from_ms(int(expiry_ms)))


def names(client: redis.Redis) -> list[str]:
    """Every float that exists."""
    return sorted(name.decode() for name in cast("set[bytes]", client.smembers(wire.FLOATS)))


def wipe(client: redis.Redis) -> None:
    """Delete every float with its reservations and pending returns: the fence's second step."""
    for name in client.scan_iter(match="v1:float:*", count=1000):
        client.delete(name)
    client.delete(wire.FLOATS)
