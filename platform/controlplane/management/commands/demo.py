"""`make demo`: the main job through the public doors, as a tenant's developer would do it.

Uses only the REST API and the gateway; what it prints is what they answered.
"""

import json
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from urllib3 import HTTPResponse, PoolManager
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from controlplane.demo import read_demo
from kernel.ids import new_id
from kernel.pricing import ACCEL_SECOND

READY_WITHIN_S = 900
BILLED_WITHIN_S = 120
SERVE_S = 5.0


class Command(BaseCommand):
    help = "Provision a dedicated endpoint, stream a completion, and show what was metered and billed."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--release", default=None, help="release to berth (default: the demo's)")
        parser.add_argument("--keep", action="store_true", help="leave the dedicated endpoint running")

    def handle(self, *args: Any, **options: Any) -> None:
        demo = read_demo()
        self.api = f"http://{settings.WEB_LISTEN}/api/v1"
        self.http = PoolManager(timeout=Timeout(connect=5, read=300), retries=False)
        self.key = demo.api_key
        release = options["release"] or demo.release
        began = time.monotonic()

        endpoint = self._post("/endpoints", {"name": f"demo-{new_id().hex[-6:]}", "release": release})
        self._say(f"endpoint {endpoint['id']} ({release}, dedicated) accepted")
        endpoint = self._until_running(endpoint)
        running = time.monotonic()
        self._say(f"running after {running - began:.0f} s")
        invoiced_s = self._invoiced_s()
        created = self._post("/api-keys", {"name": "demo", "scopes": ["inference"]})
        self._say(f"key {created['public_id']} created")
        request_ids = [self._stream(created["key"], name) for name in (endpoint["id"], release)]

        for request_id in request_ids:
            event = self._until_billed(request_id)
            self._say(f"usage event {event['event_id']}: {event['counts']} = {event['amount']} {event['currency']}")
        for entry in self._get("/ledger/entries?limit=4")["entries"]:
            self._say(f"ledger entry {entry['account']}: {entry['amount']} {entry['currency']}")
        if not options["keep"]:
            # Only whole seconds are billed: a short life may come to none.
            time.sleep(max(0.0, running + SERVE_S - time.monotonic()))
            self._call("DELETE", f"/endpoints/{endpoint['id']}")
            self._say("endpoint deleted; its accelerator time ends here")
            self._until(lambda: self._invoiced_s() > invoiced_s, "its line on the draft invoice")
        for invoice in self._get("/invoices")["invoices"]:
            self._print_invoice(invoice)

    def _until_running(self, endpoint: dict[str, Any]) -> dict[str, Any]:
        deadline, said = time.monotonic() + READY_WITHIN_S, ""
        while endpoint["phase"] != "running":
            waiting = next((c for c in endpoint["conditions"] if c["status"] != "True"), None)
            line = f"{endpoint['phase']}: {waiting['message'] or waiting['type']}" if waiting else endpoint["phase"]
            if line != said:
                self._say(line)
                said = line
            if endpoint["phase"] == "failed" or time.monotonic() > deadline:
                raise CommandError(f"the endpoint is {line}; `make doctor` looks at each part")
            time.sleep(1)
            endpoint = self._get(f"/endpoints/{endpoint['id']}")
        return endpoint

    def _stream(self, key: str, model: str) -> str:
        """Stream one chat completion to the screen; the gateway's request id."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Say something about harbours."}],
            "max_tokens": 32,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.monotonic()
        response = self._request(
            "POST", f"{settings.GATEWAY_URL}/v1/chat/completions", key=key, body=body, preload_content=False
        )
        self.stdout.write(f"  {model} says: ", ending="")
        usage: dict[str, Any] = {}
        for chunk in _chunks(response):
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                delta = choice["delta"]
                self.stdout.write(delta.get("reasoning") or delta.get("content") or "", ending="")
                self.stdout.flush()
        self.stdout.write("")
        self._say(
            f"{usage.get('completion_tokens')} tokens in {time.monotonic() - began:.1f} s, cost {usage.get('cost')}"
        )
        return response.headers["x-request-id"]

    def _until_billed(self, request_id: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            events = self._get("/usage?limit=50")["events"]
            found[:] = [event for event in events if event["request_id"] == request_id]
            return bool(found)

        self._until(is_there, f"the usage event of request {request_id}")
        return found[0]

    def _invoiced_s(self) -> int:
        """Accelerator-seconds on all invoices."""
        lines = [line for invoice in self._get("/invoices")["invoices"] for line in invoice["lines"]]
        return sum(line["quantity"] for line in lines if line["meter"] == ACCEL_SECOND)

    def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + BILLED_WITHIN_S
        while not done():
            if time.monotonic() > deadline:
                raise CommandError(f"{what} did not come within {BILLED_WITHIN_S} s; `make doctor` looks at each part")
            time.sleep(0.5)

    def _print_invoice(self, invoice: dict[str, Any]) -> None:
        self._say(
            f"{invoice['status']} invoice for {invoice['period_start'][:7]}: {invoice['total']} {invoice['currency']}"
        )
        for line in invoice["lines"]:
            self._say(f"  {line['sku']} {line['meter']} x {line['quantity']} = {line['amount']}")

    def _get(self, path: str) -> Any:
        return self._call("GET", path)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._request(method, self.api + path, key=self.key, body=body).json()

    def _request(
        self, method: str, url: str, *, key: str, body: dict[str, Any] | None, preload_content: bool = True
    ) -> HTTPResponse:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        if method == "POST":
            headers["Idempotency-Key"] = str(new_id())
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            try:
                response = self.http.request(
                    method,
                    url,
                    headers=headers,
                    body=json.dumps(body) if body is not None else None,
                    preload_content=preload_content,
                )
            except HTTPError as error:
                raise CommandError(f"{url} does not answer: run `make up` in another terminal") from error
            # The shared engine may still be loading.
            if response.status != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                break
            time.sleep(1)
        if response.status >= 400:
            raise CommandError(
                f"{method} {url}: {response.status} {response.read().decode() or response.data.decode()}"
            )
        assert isinstance(response, HTTPResponse)
        return response

    def _say(self, line: str) -> None:
        self.stdout.write(f"  {line}")


def _chunks(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE]."""
    pending = b""
    for piece in response.stream(4096):
        pending += piece
        *events, pending = pending.split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            if data == b"[DONE]":
                return
            yield json.loads(data)
