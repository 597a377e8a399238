"""Money through a real gateway, lender and meter, with a Redis that is lost or set back in mid-load."""

import asyncio
import json
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
import redis
from django.conf import settings

from billing import holds, lender, services
from billing.meter import Gateway as Internal
from billing.meter import gateway_pull
from billing.models import GatewayJournal, Hold, LedgerAccount, LedgerTx, UsageEvent
from controlplane.embedded.redis import Redis
from kernel import wire
from kernel.clock import to_ms, utcnow
from kernel.pricing import worst_case
from tests.billing.harbour import REGION, Harbour, as_system_in_a_thread, harbour
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.test_crash import KILLED_BEFORE_ITS_OPEN, faulty
from tests.inference.gateway.world import HELLO, TOKEN, Gateway, Tenant, World, gateway
from tests.services import PASSWORD, free_port, wait_until

CALLERS, ADMITTED = 8, 30


class Server:
    """A Redis whose process can be killed and whose files can be exchanged."""

    def __init__(self, folder: Path) -> None:
        self.redis = Redis(folder, free_port(), PASSWORD)
        self.redis.configure()
        config = folder / "redis.conf"
        config.write_text(config.read_text().replace("appendonly yes", "appendonly no"))
        self.dump = folder / "dump.rdb"
        self.url = self.redis.url(0)
        self.start()
        self.client = redis.Redis.from_url(self.url)

    def start(self) -> None:
        self.process = subprocess.Popen(self.redis.command(), stdout=subprocess.DEVNULL)
        wait_until(self.redis.is_ready, "redis")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@dataclass
class Place:
    """One tenant with money in PostgreSQL, and everything between it and an engine."""

    server: Server
    world: World
    berth: Harbour
    tenant: Tenant
    model: str
    door: Gateway
    engine: Engine
    projected: dict[bytes, bytes] = field(default_factory=dict)

    def price_of_one(self) -> int:
        """The most that a request can cost."""
        return worst_case(self.berth.sheet, prompt_tokens=len(self.body()) + 512, max_tokens=5)

    def body(self) -> bytes:
        """The request that these tests send."""
        content: bytes = httpx2.Request("POST", "http://x", json={**HELLO, "model": self.model}).content
        return content

    def project(self) -> None:
        """What the projection writes into an empty Redis."""
        self.world.redis.set(wire.EPOCH, "1")
        for key, value in self.projected.items():
            self.world.redis.restore(key, 0, value, replace=True)

    def remember(self) -> None:
        """Keep what the projection wrote; money is none of it."""
        keys = [key for key in self.world.redis.keys("v1:*") if not key.startswith((b"v1:float", b"v1:want"))]
        self.projected = {key: self.world.redis.dump(key) for key in keys}

    def pull(self) -> None:
        gateway_pull(Internal(self.door.internal, TOKEN))

    def free(self) -> int:
        return int(self.world.redis.hget(self.tenant.float_name, "free") or 0)

    def settle(self) -> None:
        """Wait until every request has ended and everything is booked."""
        idle = "gateway_open_requests 0\n"
        wait_until(lambda: idle in self.door.inside("GET", "/internal/metrics").text, "the end of every request", 60)
        self.pull()


@pytest.fixture
def place(no_boots: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Iterator[Place]:
    """Everything but money: tests top up."""
    (tmp_path / "redis").mkdir()
    server = Server(tmp_path / "redis")
    monkeypatch.setattr(settings, "REDIS_GATEWAY_URL", server.url)
    berth = harbour(money=0)
    world = World(server.client, server.url)
    tenant = world.tenant(free=None, tenant_id=str(berth.tenant_id))
    world.redis.hset(wire.sheets(berth.sku, REGION, "USD"), "*", json.dumps([berth.sheet.body()]))
    route = world.endpoint(tenant, engine.address, sku=berth.sku)
    world.redis.set(wire.EPOCH, "1")
    with gateway(world, tmp_path, start=False, GATEWAY_ID=berth.gateway_id, GATEWAY_WAIT_S="1") as door:
        made = Place(server, world, berth, tenant, route.endpoint_id, door, engine)
        made.remember()
        with as_system_in_a_thread(lender.run):
            door.start(known=False)
            made.pull()
            wait_until(lambda: door.ready().status_code == 200, "readiness")
            yield made
    server.kill()
    server.client.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.stop()


def top_up(place: Place, pico: int) -> None:
    services.topup(
        tenant_id=place.berth.tenant_id, currency="USD", amount_pico=pico, idem_key=str(time.time_ns()), actor="t"
    )


async def ask_all(place: Place, count: int) -> Counter[int]:
    """`count` requests at once, each on a connection of its own; 503 (the lender is slow) is asked again."""
    host, port = place.door.url.removeprefix("http://").split(":")
    body = place.body()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: {place.tenant.headers['authorization']}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    answers: Counter[int] = Counter()

    async def ask() -> None:
        while True:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + body)
            status = int((await reader.readline()).split()[1])
            await reader.read()
            writer.close()
            if status != 503:
                break
        answers[status] += 1
        if answers[402] == count - 10 and place.engine.plan.gate is not None:
            place.engine.plan.gate.set()

    await asyncio.gather(*[ask() for _ in range(count)])
    return answers


def test_fault_22_of_a_thousand_requests_at_once_money_for_ten_admits_exactly_ten(place: Place) -> None:
    one = place.price_of_one()
    top_up(place, 10 * one)
    place.engine.plan = Plan(gate=threading.Event())  # nobody settles while the others try
    assert asyncio.run(ask_all(place, 1000)) == {200: 10, 402: 990}
    place.settle()
    wait_until(lambda: place.tenant.reserved() == 0, "the last settlement")
    spent = place.berth.posted()["revenue"]
    assert place.berth.posted() == {"prepaid": 10 * one - spent, "revenue": spent}
    assert place.free() == place.berth.held()["prepaid"] == 10 * one - spent


def load(place: Place, faults: list[Callable[[], None]]) -> Counter[int]:
    """Callers ask without a pause while each of the faults happens and until it is over; what they were told."""
    stop = threading.Event()
    told: Counter[int] = Counter()

    def caller() -> None:
        while not stop.is_set():
            told[place.door.chat(place.tenant, place.model).status_code] += 1

    with ThreadPoolExecutor(CALLERS) as callers:
        running = [callers.submit(caller) for _ in range(CALLERS)]
        try:
            for happens in [lambda: None, *faults]:
                happens()
                enough = told[200] + ADMITTED
                wait_until(lambda enough=enough: told[200] >= enough, "admission", 60)
        finally:
            stop.set()
        for call in running:
            call.result()
    return told


def nobody_overspent(place: Place, paid_in: int, told: Counter[int]) -> None:
    assert set(told) <= {200, 402, 503}
    place.settle()
    accounts = {row.kind: row for row in LedgerAccount.objects.filter(tenant_id=place.berth.tenant_id)}
    assert accounts["overrun"].posted == 0
    assert accounts["prepaid"].available >= 0
    assert accounts["prepaid"].posted + accounts["revenue"].posted == paid_in
    assert GatewayJournal.objects.get(gateway_id=place.berth.gateway_id).pulled_seq >= told[200]
    # Money that was lent twice would be drawn from a hold that lacks it.
    assert not LedgerTx.objects.filter(tenant_id=place.berth.tenant_id, kind="usage_late").exists()
    # The fault was seen: what was lent before it lies in sealed holds.
    assert Hold.objects.filter(account=accounts["prepaid"], sealed_at__isnull=False).exists()


def test_fault_7_flushall_in_mid_load_overdraws_nothing(place: Place) -> None:
    paid_in = 60 * place.price_of_one()
    top_up(place, paid_in)

    def flush() -> None:
        place.world.redis.flushall()
        place.project()

    told = load(place, [flush, flush])
    nobody_overspent(place, paid_in, told)


def test_fault_9_a_redis_restored_to_an_older_state_in_mid_load_overdraws_nothing(place: Place) -> None:
    paid_in = 60 * place.price_of_one()
    top_up(place, paid_in)
    older = place.server.dump.with_suffix(".older")

    def save() -> None:
        place.world.redis.save()
        shutil.copy(place.server.dump, older)

    def restore() -> None:
        place.server.kill()
        shutil.copy(older, place.server.dump)
        place.server.start()
        place.project()

    told = load(place, [save, restore])
    nobody_overspent(place, paid_in, told)


def test_fault_3_killed_before_its_open_no_engine_is_asked_and_the_money_comes_back_with_the_hold(
    place: Place, tmp_path: Path
) -> None:
    one = place.price_of_one()
    top_up(place, one)
    place.door.kill()
    with faulty(place.door, tmp_path, KILLED_BEFORE_ITS_OPEN), pytest.raises(httpx2.TransportError):
        place.door.chat(place.tenant, place.model)
    place.door.start(known=False)
    place.pull()
    assert place.engine.asked == []
    assert UsageEvent.objects.filter(tenant_id=place.berth.tenant_id).count() == 0
    name = wire.reservations(place.tenant.float_name)
    ((request_id, text),) = place.world.redis.hgetall(name).items()
    generation, amount, expiry_ms = text.decode().split("|")
    assert (int(amount), place.free()) == (one, 0)
    assert time.time() < int(expiry_ms) / 1000 < time.time() + wire.LONGEST_REQUEST_S + 1
    # As if the longest request and its grace were over.
    gone_ms = to_ms(utcnow() - holds.GRACE) - 1
    place.world.redis.hset(name, request_id, f"{generation}|{amount}|{gone_ms}")
    wait_until(lambda: place.tenant.reserved() == 0, "its end")
    assert place.berth.posted() == {"prepaid": one}
    wait_until(lambda: place.door.chat(place.tenant, place.model).status_code == 200, "admission with the same money")
    place.settle()
    assert UsageEvent.objects.filter(tenant_id=place.berth.tenant_id).count() == 1
