"""The requests that this process is working on: how far back they reach, and how to cut them short."""

import asyncio
import time
from collections.abc import Container
from dataclasses import dataclass, field

from inference.gateway.relay import End, Relay

AT_ONCE = 16


@dataclass(slots=True)
class Flight:
    """`since_ms` is the admission time; before it is known, the time at which admission was asked.

    `key_id` is known from admission on; `relay` is the attempt under way, to be cut at `until` on the loop's clock.
    """

    since_ms: int
    key_id: str = ""
    relay: Relay | None = None
    until: float = 0.0


@dataclass(slots=True)
class Flights:
    """Open requests by id."""

    open: dict[str, Flight] = field(default_factory=dict)

    def board(self, request_id: str) -> Flight:
        """A request is about to ask for admission."""
        flight = self.open[request_id] = Flight(time.time_ns() // 1_000_000)
        return flight

    def leave(self, request_id: str) -> None:
        """A request has its CLOSE, or never got that far."""
        del self.open[request_id]

    def low_ms(self) -> int:
        """Nothing admitted before this instant is still without its end in the journal."""
        return min((flight.since_ms for flight in self.open.values()), default=time.time_ns() // 1_000_000)

    async def look(self, now: float, within_s: float) -> None:
        """Called every `within_s`: end what would outlast its time before the next look, note progress.

        A few at a time: the chunks of all others would wait meanwhile.
        """
        for count, flight in enumerate(list(self.open.values())):
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)
            if flight.relay is not None and not flight.relay.end.done():
                if flight.until < now + within_s:
                    flight.relay.stop(End.CUT)
                else:
                    flight.relay.look(now)

    def cut(self) -> None:
        """End every answer that is under way."""
        for flight in list(self.open.values()):
            if flight.relay is not None:
                flight.relay.stop(End.CUT)

    def revoke(self, key_ids: Container[str]) -> None:
        """End every answer that runs under one of these keys."""
        for flight in list(self.open.values()):
            if flight.relay is not None and flight.key_id in key_ids:
                flight.relay.stop(End.REVOKED)
