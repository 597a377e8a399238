"""The projection at size: 1,000 tenants, 10,000 keys and 1,000 endpoints, from PostgreSQL to a gateway.

How long `project_all` takes into an empty Redis and again and how much memory it takes, how many bytes Redis holds,
how long a gateway takes from its start to readiness, what it holds then and at the end, and what a request costs in
CPU (gateway and Redis) when every request comes with another key for another endpoint, against the same gateway on
a projection of one tenant, one key and one endpoint. Rounds of both alternate; every key that asks was seen once
before. Another number of keys may follow the program's name; at most CALLERS of them ask.
"""

import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]
os.environ.setdefault("MOORAGE_SECRET_KEY", "bench")
os.environ.setdefault("MOORAGE_ROLE", "system")

import psycopg  # noqa: E402  # needs the path set above
import redis  # noqa: E402

from tests.inference.gateway.engine import Engine, Plan  # noqa: E402
from tests.inference.gateway.world import CURRENCY, REGION, SKU, Gateway, World, gateway  # noqa: E402
from tests.services import postgres_server, redis_server  # noqa: E402

TENANTS, ENDPOINTS = 1_000, 1_000
KEYS = int(sys.argv[1]) if sys.argv[1:] else 10_000
CALLERS = 50_000  # more than a gateway keeps
AT_ONCE = 10_000
ROUNDS, REQUESTS = 5, 2_000
WIDTH = 16
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway on a projection, and whole requests that it answers."""

    door: Gateway
    pids: tuple[int, int]
    requests: list[bytes]


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moorage-bench-")))
        for name in ("postgres", "large", "small"):
            (folder / name).mkdir()
        engine = Engine()
        stack.callback(engine.stop)
        engine.plan = Plan(tokens=1)
        large, figures = stack.enter_context(_large(folder, engine))
        small = stack.enter_context(_small(folder, engine))
        for place in (large, small):
            cpu_us(place, place.requests)
        samples: dict[str, list[float]] = {"large": [], "small": []}
        for number in range(ROUNDS):
            pair = [("large", large), ("small", small)]
            for name, place in pair if number % 2 else reversed(pair):
                samples[name].append(cpu_us(place, random.choices(place.requests, k=REQUESTS)))
            print(f"round {number + 1}: {samples}", file=sys.stderr)
        figures["gateway_rss_bytes_after"] = _rss_bytes(large)
        medians = {name: statistics.median(values) for name, values in samples.items()}
        result = {
            "bench": "projection",
            "machine": {"cores": os.cpu_count()},
            "tenants": TENANTS,
            "keys": KEYS,
            "endpoints": ENDPOINTS,
            **figures,
            "cpu_us_per_request": {name: round(value, 1) for name, value in medians.items()},
            "ratio": {"cpu_per_request_large_vs_small": round(medians["large"] / medians["small"], 3)},
        }
    print(json.dumps(result))


@contextmanager
def _large(folder: Path, engine: Engine) -> Iterator[tuple[Place, dict[str, float]]]:
    """The whole of it: rows in PostgreSQL, projected by the product's own code."""
    with ExitStack() as stack:
        dsn = stack.enter_context(postgres_server(folder / "postgres"))
        server = stack.enter_context(redis_server(folder / "large"))
        texts, endpoints = _rows(dsn, server.url(0))
        from django.conf import settings

        from controlplane.projection import client, project_all

        empty = client().info("memory")["used_memory"]
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        first_s, again_s = _seconds(project_all), _seconds(project_all)
        grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) << 10
        size_bytes = client().info("memory")["used_memory"] - empty
        world = World(client(), server.url(0))
        world.found()
        world.price()
        for tenant_id, _ in texts:
            name = f"v1:float:{tenant_id}:general:{CURRENCY}"
            world.redis.hset(name, mapping={"gen": 1, "transfer": 1, "free": 10**15, "dry": 1})
        for record in endpoints.values():
            world.pod(record, engine.address)
        pepper = settings.KEY_PEPPER.hex()
        door = stack.enter_context(gateway(world, folder / "large", start=False, MOORAGE_KEY_PEPPER=pepper))
        start_s = _seconds(door.start)
        requests = [_request(text, endpoints[tenant_id].endpoint_id) for tenant_id, text in texts]
        figures = {
            "project_all_empty_s": round(first_s, 2),
            "project_all_again_s": round(again_s, 2),
            "project_all_grown_bytes": grown_bytes,
            "redis_bytes": size_bytes,
            "gateway_start_to_ready_s": round(start_s, 2),
        }
        place = _place(door, world, requests)
        figures["gateway_rss_bytes_at_start"] = _rss_bytes(place)
        yield place, figures


@contextmanager
def _small(folder: Path, engine: Engine) -> Iterator[Place]:
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(folder / "small"))
        world = World(redis.Redis.from_url(server.url(0)), server.url(0))
        world.found()
        world.price()
        tenant = world.tenant()
        endpoint = world.endpoint(tenant, engine.address).endpoint_id
        door = stack.enter_context(gateway(world, folder / "small"))
        yield _place(door, world, [_request(tenant.text, endpoint)] * REQUESTS)


def _rows(dsn: str, redis_url: str) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Tenants, keys and endpoints as rows: every key's tenant and text, and every tenant's route."""
    info = psycopg.conninfo.conninfo_to_dict(dsn)
    os.environ |= {
        "DATABASE_URL": f"postgres://{info['host']}:{info['port']}/bench",
        "REDIS_GATEWAY_URL": redis_url,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "LOG_LEVEL": "WARNING",
    }
    from controlplane.database import bootstrap

    bootstrap(dsn, "bench", os.environ["MOORAGE_SECRET_KEY"])
    owner = {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", "MOORAGE_ROLE": "owner"}
    migrate = [sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity", "0"]
    subprocess.run(migrate, check=True, env=os.environ | owner)
    import django

    django.setup()
    return _fill()


def _fill() -> tuple[list[tuple[str, str]], dict[str, Any]]:
    from django.conf import settings

    from inference.core.words import Rung
    from inference.models import Deployment, Endpoint, Pool
    from inference.selectors import catalogue, route_list
    from kernel import keys
    from tenants.models import ApiKey, Tenant

    known = catalogue()
    release = next(one for one in known.releases if known.recipes_of(one))
    pool = Pool.objects.create(
        region=REGION,
        name="bench",
        cluster="bench",
        accelerator="cpu",
        capacity=1,
        arch="amd64",
        engine_images={},
        weights_root="/",
    )
    tenants = Tenant.objects.bulk_create(Tenant(name=f"t{n}", currency=CURRENCY) for n in range(TENANTS))
    endpoints = Endpoint.objects.bulk_create(
        Endpoint(tenant=tenants[n % TENANTS], name=f"e{n}", release=release, rung=Rung.SHARED, region=REGION, spec={})
        for n in range(ENDPOINTS)
    )
    recipe = known.recipes_of(release)[0].id
    Deployment.objects.bulk_create(
        Deployment(tenant=one.tenant, endpoint=one, pool=pool, recipe=recipe, replicas=1, accelerators=1, sku=SKU)
        for one in endpoints
    )
    callers: list[tuple[str, str]] = []
    for first in range(0, KEYS, AT_ONCE):
        made = [(tenants[n % TENANTS], keys.generate()) for n in range(first, min(first + AT_ONCE, KEYS))]
        ApiKey.objects.bulk_create(
            ApiKey(
                tenant=tenant,
                public_id=key.public_id,
                secret_hmac=keys.digest(settings.KEY_PEPPER, key.text),
                name="k",
                scopes=["inference"],
                rpm=1_000_000,
                concurrency=10_000,
            )
            for tenant, key in made
        )
        callers += [(str(tenant.id), key.text) for tenant, key in made if len(callers) < CALLERS]
    return callers, {one.tenant_id: one for one in route_list()}


def _place(door: Gateway, world: World, requests: list[bytes]) -> Place:
    assert door.process is not None
    return Place(door, (door.process.pid, world.redis.info("server")["process_id"]), requests)


def _request(text: str, endpoint_id: str) -> bytes:
    body = json.dumps({"model": endpoint_id, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {text}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


def cpu_us(place: Place, requests: list[bytes]) -> float:
    """CPU of gateway and Redis for each of these requests, sixteen at a time; every answer is a 200."""
    host, port = place.door.url.removeprefix("http://").split(":")
    before = _cpu_s(place)
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_connection((host, int(port)))) for _ in range(WIDTH)]
        for start in range(0, len(requests), WIDTH):
            batch = list(zip(sockets, requests[start : start + WIDTH], strict=False))
            for sock, request in batch:
                sock.sendall(request)
            for sock, _ in batch:
                _read(sock)
    return (_cpu_s(place) - before) / len(requests) * 1e6


def _read(sock: socket.socket) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        received += sock.recv(65536)
    head, _, rest = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), received
    missing = int(head.split(b"content-length: ")[1].split(b"\r\n")[0]) - len(rest)
    while missing > 0:
        missing -= len(sock.recv(65536))


def _rss_bytes(place: Place) -> int:
    return int(Path(f"/proc/{place.pids[0]}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(place: Place) -> float:
    ticks = 0
    for pid in place.pids:
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / TICKS


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
