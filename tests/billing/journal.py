"""A gateway's internal listener as the meter sees it: a journal that tests write and break."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from billing.meter import Gateway
from billing.models import GatewayJournal
from kernel.clock import to_ms, utcnow
from tests.billing.harbour import UNIT, Harbour, harbour

TOKEN = "internal"


@dataclass
class Journal:
    """What a gateway's internal listener answers, and what it was asked."""

    berth: Harbour
    events: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False
    run_id: str | None = "run-1"
    low_ms: int = field(default_factory=lambda: to_ms(utcnow()))
    freed: int = 0
    status: int = 200
    first_seq: int = 1
    broken: dict[str, bytes] = field(default_factory=dict)  # boots that come first, and the page they answer with
    boots: Any = "its own"

    def add(self, count: int = 1) -> None:
        self.events += [self.berth.event().to_json() for _ in range(count)]

    def answer(self, path: str, query: dict[str, list[str]]) -> dict[str, Any]:
        boot = str(self.berth.boot_id)
        if path == "/internal/journal":
            boots = [{"boot_id": other, "head": 1, "closed": False} for other in self.broken]
            boots.append({"boot_id": boot, "head": len(self.events), "closed": self.closed})
            return {
                "gateway_id": self.berth.gateway_id,
                "boots": boots if self.boots == "its own" else self.boots,
                "boot_id": boot,
                "run_id": self.run_id,
                "low": self.low_ms,
            }
        assert path == f"/internal/journal/{boot}"
        first, limit = int(query["from"][0]), int(query["limit"][0])
        self.freed = first - 1
        page = self.events[first - 1 : first - 1 + limit]
        records = [{"seq": seq, "event": event} for seq, event in enumerate(page, first + self.first_seq - 1)]
        return {"events": records, "head": len(self.events), "closed": self.closed}


@contextmanager
def listener() -> Iterator[tuple[Journal, Gateway]]:
    """A gateway's internal listener with nothing in its journal yet."""
    world = Journal(harbour())
    world.berth.hold(UNIT)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
            self.send_response(world.status if allowed else 401)
            self.end_headers()
            page = world.broken.get(parts.path.rpartition("/")[2])
            self.wfile.write(page or json.dumps(world.answer(parts.path, parse_qs(parts.query))).encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield world, Gateway(f"http://127.0.0.1:{server.server_port}/", TOKEN)
    server.shutdown()
    thread.join()
    server.server_close()
    GatewayJournal.objects.filter(gateway_id=world.berth.gateway_id).delete()
