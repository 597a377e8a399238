"""What surrounds a gateway in tests: the projection and the lender's side of Redis, and the process itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import redis

from kernel import ids, keys, wire
from kernel.pricing import Rate, Sheet
from kernel.usage import UsageEvent
from tests.services import free_port, wait_until

PEPPER = bytes(range(32))
TOKEN = "internal-token"
REGION, CURRENCY, SKU = "local", "USD", "tiny:shared"
PRICES = {"in_hit": Rate(10), "in_miss": Rate(100), "out": Rate(1000)}
ROOT = Path(__file__).parents[3]
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


@dataclass
class Tenant:
    """A tenant with one key and one float."""

    world: "World"
    record: wire.KeyRecord
    text: str

    @property
    def float_name(self) -> str:
        return wire.float_key(self.record.tenant_id, "general", CURRENCY)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.text}"}

    def change(self, **changes: Any) -> None:
        """Write the key anew, one version on."""
        self.record = replace(self.record, version=self.record.version + 1, **changes)
        self.world.write_key(self.record)

    def lend(self, free: int, *, dry: bool = True, generation: int = 1) -> None:
        """Set the float as a lender would leave it."""
        fields = {"gen": generation, "transfer": 1, "free": free, "dry": int(dry)}
        self.world.redis.hset(self.float_name, mapping=fields)
        self.world.redis.sadd(wire.FLOATS, self.float_name)

    def free(self) -> int:
        return int(self.world.redis.hget(self.float_name, "free"))

    def reserved(self) -> int:
        return self.world.redis.hlen(wire.reservations(self.float_name))

    def concurrent(self) -> int:
        return self.world.redis.zcard(wire.concurrency(self.record.key_id))


@dataclass
class World:
    """One database of one Redis, as the control plane fills it."""

    redis: "redis.Redis[bytes]"
    url: str

    def found(self) -> None:
        """The lender's fence and the projection's epoch."""
        self.redis.set(wire.EPOCH, "1")
        self.redis.set(wire.FLOAT_RUN, self.redis.info("server")["run_id"])

    def write_key(self, record: wire.KeyRecord) -> None:
        fields = {"v": record.version, "r": wire.dumps(record)}
        self.redis.hset(wire.key(record.public_id), mapping=fields)

    def tenant(self, *, free: int | None = 10**15, **changes: Any) -> Tenant:
        key = keys.generate()
        record = wire.KeyRecord(
            key_id=str(uuid4()),
            public_id=key.public_id,
            tenant_id=str(uuid4()),
            digest=keys.digest(PEPPER, key.text).hex(),
            version=1,
            currency=CURRENCY,
            purses=["general"],
            rpm=100_000,
            concurrency=1000,
        )
        tenant = Tenant(self, replace(record, **changes), key.text)
        self.write_key(tenant.record)
        if free is not None:
            tenant.lend(free)
        return tenant

    def price(self, sku: str = SKU, meters: dict[str, Rate] | None = None, *, owner: str = "*") -> Sheet:
        start = datetime(2026, 1, 1, tzinfo=UTC)
        own = None if owner == "*" else owner
        sheet = Sheet(sku, REGION, CURRENCY, start, PRICES if meters is None else meters, own)
        self.redis.hset(wire.sheets(sku, REGION, CURRENCY), owner, json.dumps([sheet.body()]))
        return sheet

    def endpoint(
        self, owner: Tenant, *addresses: str, shared_as: str = "", sku: str = SKU, **changes: Any
    ) -> wire.RouteRecord:
        """An endpoint with one deployment whose replicas listen at `addresses`."""
        route = wire.RouteRecord(
            endpoint_id=ids.encode(ids.ENDPOINT, ids.new_id()),
            tenant_id=owner.record.tenant_id,
            shared=bool(shared_as),
            model="tiny",
            served_name="served",
            region=REGION,
            max_model_len=4096,
            generation=1,
            running=True,
            created=1,
            deployments=[wire.DeploymentRoute(str(uuid4()), 100, sku)],
        )
        route = replace(route, **changes)
        self.redis.set(wire.route(route.endpoint_id), wire.dumps(route))
        self.redis.sadd(wire.endpoints(owner.record.tenant_id), route.endpoint_id)
        if shared_as:
            self.redis.hset(wire.SHARED, shared_as, route.endpoint_id)
        for address in addresses:
            self.pod(route, address)
        return route

    def pod(self, route: wire.RouteRecord, address: str, state: str = wire.SERVING) -> str:
        uid = str(uuid4())
        record = wire.PodRecord(uid, address, state)
        self.redis.hset(wire.pods(route.deployments[0].deployment_id), uid, wire.dumps(record))
        return uid


class Lender:
    """Answers wants out of one balance, as the real lender does between PostgreSQL and Redis; `least` at a time."""

    def __init__(self, world: World, balance: int, *, least: int = 0) -> None:
        self._world, self.balance, self._least = world, balance, least
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Lender":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self._world.redis.delete(wire.WANT)  # what it had no time for is not the next one's

    def _run(self) -> None:
        while not self._stop.is_set():
            popped = self._world.redis.blpop([wire.WANT], timeout=0.1)
            if popped is None:
                continue
            want = wire.load_want(popped[1])
            name = wire.float_key(want.tenant_id, want.purse, want.currency)
            amount = min(self.balance, max(want.amount, self._least))
            self.balance -= amount
            with self._world.redis.pipeline() as pipe:
                pipe.hsetnx(name, "gen", 1)
                pipe.hincrby(name, "transfer", 1)
                pipe.hincrby(name, "free", amount)
                pipe.hset(name, "dry", int(self.balance == 0))
                pipe.execute()


@dataclass
class Gateway:
    """A gateway process and its two doors."""

    url: str
    internal: str
    environment: dict[str, str]
    log: Path
    module: str = "inference.gateway"
    process: subprocess.Popen[bytes] | None = None
    events: list[UsageEvent] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)

    def start(self, *, known: bool = True) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, f"start of the gateway ({self.log})")
        if known:
            self.introduce()
            wait_until(lambda: self.ready().status_code == 200, "readiness")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            inside = httpx2.get(f"{self.internal}/internal/ready").status_code in (200, 503)
            return inside and httpx2.get(f"{self.url}/healthz").status_code == 200
        except httpx2.TransportError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def terminate(self, within_s: float = 20) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def ready(self) -> httpx2.Response:
        return httpx2.get(f"{self.internal}/internal/ready")

    def inside(self, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {TOKEN}", **more.pop("headers", {})}
        return httpx2.request(method, self.internal + path, headers=headers, timeout=70, **more)

    def boots(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.inside("GET", "/internal/journal").json()
        return answer

    def introduce(self) -> None:
        """Ask for the current boot's events, as a meter does whose PostgreSQL knows it: from here on it admits."""
        self.inside("GET", f"/internal/journal/{self.boots()['boot_id']}")

    def pull(self) -> list[UsageEvent]:
        """Everything that the journals hold, as the meter would fetch it: each event once, gap-free."""
        for boot in self.boots()["boots"]:
            position = self.positions.get(boot["boot_id"], 0)
            while position < boot["head"]:
                page = self.inside("GET", f"/internal/journal/{boot['boot_id']}?from={position + 1}").json()
                for entry in page["events"]:
                    position += 1
                    assert entry["seq"] == position
                    self.events.append(UsageEvent.from_json(entry["event"]))
            self.positions[boot["boot_id"]] = position
        return self.events

    def events_of(self, tenant: Tenant, *, at_least: int = 1, within_s: float = 5) -> list[UsageEvent]:
        """The events of a tenant, once there are as many as expected."""

        def found() -> list[UsageEvent]:
            owner = UUID(tenant.record.tenant_id)
            return [event for event in self.pull() if event.tenant_id == owner]

        wait_until(lambda: len(found()) >= at_least, f"{at_least} events", within_s)
        return found()

    def chat(self, tenant: Tenant, model: str, **body: Any) -> httpx2.Response:
        return httpx2.post(
            f"{self.url}/v1/chat/completions",
            headers=tenant.headers,
            json={**HELLO, "model": model, **body},
            timeout=30,
        )

    def raw(self, data: bytes, *, read_s: float = 5) -> bytes:
        """Send bytes, read until the gateway closes or is silent."""
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=read_s) as sock:
            sock.sendall(data)
            received = b""
            try:
                while piece := sock.recv(65536):
                    received += piece
            except (TimeoutError, ConnectionResetError):
                pass
            return received


@contextmanager
def gateway(
    world: World, folder: Path, *, start: bool = True, module: str = "inference.gateway", **settings: str
) -> Iterator[Gateway]:
    """A gateway for the length of a block."""
    port, internal = free_port(), free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "GATEWAY_INTERNAL_LISTEN": f"127.0.0.1:{internal}",
        "GATEWAY_JOURNAL_DIR": str(folder / "journal"),
        "GATEWAY_ID": "gw-test",
        "REDIS_GATEWAY_URL": world.url,
        "MOORAGE_INTERNAL_TOKEN": TOKEN,
        "MOORAGE_KEY_PEPPER": PEPPER.hex(),
        **settings,
    }
    made = Gateway(
        f"http://127.0.0.1:{port}", f"http://127.0.0.1:{internal}", environment, folder / "gateway.log", module
    )
    try:
        if start:
            made.start()
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.kill()
