"""The streaming relay that writes Anthropic's events: every chunk of the engine is read and written anew."""

from collections.abc import Callable, Mapping
from typing import Any

from inference.gateway.core import message_answer
from inference.gateway.core.message_answer import Events
from inference.gateway.core.request import Call
from inference.gateway.core.usage import Counts, Running
from inference.gateway.relay import StreamRelay
from inference.gateway.server import Connection
from kernel.problems import Problem


class MessageRelay(StreamRelay):
    """One attempt at one streamed message."""

    __slots__ = ("_events",)

    def __init__(self, client: Connection, running: Running, *, call: Call, progress: Callable[[int], None]) -> None:
        super().__init__(client, running, call=call, progress=progress)
        self._events = Events(call.model)

    def chunks(self, data: bytes) -> int:
        """Sink: nothing is passed on unread."""
        return 0

    def terminal(self, counts: Counts, cost_pico: int, currency: str) -> bytes:
        """The events that close the message, with its usage."""
        return self._events.end(counts, cost_pico, currency)

    def failure(self, problem: Problem) -> bytes:
        """The event that ends the stream instead."""
        return message_answer.error(problem)

    def _usual_event(self, event: bytes) -> bool:
        return False

    def _spelled(self, event: bytes, parsed: Mapping[str, Any]) -> bytes:
        return self._events.piece(parsed, self.running.counts.prompt)
