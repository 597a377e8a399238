"""The gateway without its meter, to tell what metering costs: `python -m bench.gateway.unmetered`.

The same path and the same relay, but nothing is reserved or settled in Redis and nothing is written down. The
product has no such switch: this program puts two empty parts in the places of admission and journal.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from inference.gateway import app
from inference.gateway.__main__ import main
from inference.gateway.admission import Ask, Grant
from inference.gateway.boot_log import BootLog
from inference.gateway.redis_client import Redis
from kernel.clock import utcnow


class Nothing:
    """Admits everything, for no money."""

    def __init__(self, _redis: Redis, _longest_s: float) -> None:
        pass

    async def admit(self, ask: Ask) -> Grant:
        """A place that nobody counts."""
        now = utcnow()
        return Grant(
            request_id=ask.request_id,
            key=ask.key,
            quote=await ask.price_at(now, False),
            started_at=now,
            reserved_pico=0,
            purse=None,
            generation=None,
            headers={},
            limits=(),
        )

    def settle(self, **_: object) -> None:
        """Nothing was reserved."""

    async def settled(self, _timeout_s: float) -> None:
        """Nothing is under way."""


class Nowhere:
    """Durable at once, for nothing is written."""

    def __init__(self, directory: Path, boot_id: UUID, _on_failure: Callable[[OSError], None]) -> None:
        self.log = BootLog(directory / str(boot_id), closed=False)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.set_result(None)

    def open(self, _event: Mapping[str, Any]) -> "asyncio.Future[None]":
        """As if it were on the disk."""
        return self._done

    close = open  # noqa: A003  # the journal's own words

    def progress(self, *_: object) -> None:
        """Nobody would read it."""

    drop = progress

    def nearly_full(self) -> bool:
        """It takes no room."""
        return False

    async def finish(self) -> None:
        """There is nothing left to write."""


if __name__ == "__main__":
    app.Admission, app.Journal = Nothing, Nowhere  # type: ignore[misc,assignment]
    sys.exit(main())
