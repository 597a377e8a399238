"""How far metering lies behind, in seconds of each kind of usage, as Prometheus reads it.

Dedicated time is booked by the hour, so up to an hour of it is no lag; tokens follow within seconds.
"""

import hmac
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from django.conf import settings
from django.db import connection
from django.db.models import Min
from django.db.models.functions import Coalesce

from billing import holds, reserved, spans
from billing.models import BillableSpan, GatewayJournal, ReservedSpan
from kernel.clock import utcnow
from tenants.models import Outbox

log = logging.getLogger(__name__)
NAME = "moorage_meter_lag_seconds"
HEAD = f"# HELP {NAME} Age of the oldest usage that is not on the books yet.\n# TYPE {NAME} gauge\n"


def lags(*, now: datetime) -> dict[str, float]:
    """Labels → seconds: tokens of each gateway, accelerator time, reserved days, and facts that nobody took yet."""
    journals = GatewayJournal.objects.exclude(holds.PULLED).values_list("gateway_id")
    oldest = {
        f'meter="tokens",gateway="{gateway_id}"': at
        for gateway_id, at in journals.annotate(at=Min(Coalesce("posted_low_at", "seen_at"))).order_by("gateway_id")
    }
    running = BillableSpan.objects.filter(finished=False)
    oldest['meter="accel"'] = running.aggregate(at=Min(Coalesce("rated_until", "from_at")))["at"]
    oldest['meter="reserved"'] = ReservedSpan.objects.filter(finished=False).aggregate(at=Min("due_at"))["at"]
    facts = Outbox.objects.filter(topic__in=(spans.TOPIC, reserved.TOPIC), published_at=None)
    oldest['meter="facts"'] = facts.aggregate(at=Min("created_at"))["at"]
    return {labels: max(0.0, (now - at).total_seconds()) if at else 0.0 for labels, at in oldest.items()}


def exposition(*, now: datetime) -> str:
    """The gauges as text."""
    return HEAD + "".join(f"{NAME}{{{labels}}} {seconds:.3f}\n" for labels, seconds in lags(now=now).items())


@contextmanager
def listener(listen: str) -> Iterator[int | None]:
    """Answer GET /metrics at `host:port` during a block, to whoever has the internal token; its port. "" is nowhere.

    Where nothing can listen there, that is logged: usage is booked without a gauge too.
    """
    if not listen:
        yield None
        return
    host, _, port = listen.rpartition(":")
    try:
        server = ThreadingHTTPServer((host, int(port)), _Handler)
    except OSError as error:
        log.warning("nobody can ask how far metering lies behind, %s cannot be listened on: %s", listen, error)
        yield None
        return
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        expected = f"Bearer {settings.INTERNAL_TOKEN}".encode()
        if not hmac.compare_digest(self.headers.get("Authorization", "").encode("latin-1"), expected):
            self.send_error(HTTPStatus.UNAUTHORIZED)
        elif self.path != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            try:
                body = exposition(now=utcnow()).encode()
            finally:
                connection.close()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A scrape is no news."""
