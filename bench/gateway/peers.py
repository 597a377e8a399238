"""Who is measured: each is started once, on loopback, and named by its processes."""

import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from bench.gateway.install import HERE, PLACE
from tests.inference.gateway.world import Gateway, Lender, World, gateway
from tests.services import free_port, redis_server, wait_until

MODEL = "m"
START_S = 90.0


@dataclass(frozen=True, slots=True)
class Peer:
    """`port` is where clients call, `pids` are the roots of its processes, none for a direct call.

    `share` is the part of the common load that it gets: a slow one would still be busy at its deadline.
    """

    name: str
    port: int
    pids: tuple[int, ...] = ()
    headers: tuple[str, ...] = ()
    share: float = 1.0
    streams: bool = True


@contextmanager
def started(folder: Path, *, quick: bool) -> Iterator[list[Peer]]:
    """The stub and everybody in front of it, until the block ends."""
    with ExitStack() as stack:

        def run(name: str, *argv: str, **environment: str) -> int:
            return stack.enter_context(_process(folder, name, argv, environment))

        stub = free_port()
        run("stub", f"{PLACE}/bin/stub", ADDR=f"127.0.0.1:{stub}")
        peers = [
            Peer("direct", stub),
            stack.enter_context(_ours(folder, stub, "ours", "inference.gateway")),
            stack.enter_context(_ours(folder, stub, "unmetered", "bench.gateway.unmetered")),
            _limit(run, stub),
            _envoy(run, stub, folder),
            _vllm_router(run, stub),
        ]
        if not quick:
            peers += [_portkey(run, stub), _litellm(run, stub, folder)]
        for peer in peers:
            wait_until(lambda p=peer: _answers(p), f"an answer of {peer.name} ({folder})", START_S)  # type: ignore[misc]
        yield peers


@contextmanager
def _process(folder: Path, name: str, argv: tuple[str, ...], environment: dict[str, str]) -> Iterator[int]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, **environment})
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def _ours(folder: Path, stub: int, name: str, module: str) -> Iterator[Peer]:
    """A gateway with its Redis, a lender, and the meter's pull every half second."""
    folder /= name
    folder.mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(folder / "redis"))
        client = redis.Redis.from_url(server.url(0))
        world = World(client, server.url(0))
        world.found()
        world.price()
        tenant = world.tenant(free=0, rpm=10**9, concurrency=10**6)
        tenant.lend(0, dry=False)
        world.endpoint(world.tenant(), f"127.0.0.1:{stub}", shared_as=MODEL)
        stack.enter_context(Lender(world, 10**18, least=10**13))
        door = stack.enter_context(gateway(world, folder, module=module))
        stack.enter_context(_metered(door))
        assert door.process is not None
        yield Peer(
            name,
            int(door.url.rpartition(":")[2]),
            (door.process.pid, client.info("server")["process_id"]),
            (f"authorization: Bearer {tenant.text}",),
        )


@contextmanager
def _metered(door: Gateway) -> Iterator[None]:
    over = threading.Event()

    def pull() -> None:
        while not over.wait(0.5):
            door.pull()
            door.events.clear()

    thread = threading.Thread(target=pull)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _limit(run, stub: int) -> Peer:
    port = free_port()
    return Peer("limit", port, (run("limit", sys.executable, f"{HERE}/relay.py", str(port), str(stub)),))


def _envoy(run, stub: int, folder: Path) -> Peer:
    port = free_port()
    text = (HERE / "envoy.json").read_text().replace('"@PORT@"', str(port)).replace('"@STUB@"', str(stub))
    (folder / "envoy.json").write_text(text)
    argv = ("-c", f"{folder}/envoy.json", "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning")
    return Peer("envoy", port, (run("envoy", f"{PLACE}/envoy/bin/envoy", *argv),))


def _vllm_router(run, stub: int) -> Peer:
    """One worker thread, as every other here has one."""
    port = free_port()
    settings = {
        "worker-urls": f"http://127.0.0.1:{stub}",
        "host": "127.0.0.1",
        "port": str(port),
        "policy": "round_robin",
        "prometheus-host": "127.0.0.1",
        "prometheus-port": str(free_port()),
        "log-level": "warning",
    }
    argv = [part for name, value in settings.items() for part in (f"--{name}", value)]
    return Peer(
        "vllm_router",
        port,
        (run("vllm-router", f"{PLACE}/vllm-router/bin/vllm-router", *argv, TOKIO_WORKER_THREADS="1"),),
    )


def _portkey(run, stub: int) -> Peer:
    """Its streams fail on this version of Node (immutable headers): whole answers only."""
    port = free_port()
    server = f"{PLACE}/portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    pid = run(
        "portkey",
        "node",
        "--require",
        f"{HERE}/loopback.cjs",
        server,
        f"--port={port}",
        "--headless",
        TRUSTED_CUSTOM_HOSTS="127.0.0.1",
    )
    headers = (
        "x-portkey-provider: openai",
        f"x-portkey-custom-host: http://127.0.0.1:{stub}/v1",
        "authorization: Bearer none",
    )
    return Peer("portkey", port, (pid,), headers, share=0.1, streams=False)


def _litellm(run, stub: int, folder: Path) -> Peer:
    port = free_port()
    model = f"{{model: openai/{MODEL}, api_base: 'http://127.0.0.1:{stub}/v1', api_key: none}}"
    (folder / "litellm.yaml").write_text(f"model_list:\n- model_name: {MODEL}\n  litellm_params: {model}\n")
    argv = ("--config", f"{folder}/litellm.yaml", "--host", "127.0.0.1", "--port", str(port))
    key = f"sk-{secrets.token_hex(24)}"
    settings = {
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PATH": f"{PLACE}/litellm/bin:{os.environ['PATH']}",
        "PYTHONPATH": "",
    }
    pid = run("litellm", f"{PLACE}/litellm/bin/litellm", *argv, **settings)
    return Peer("litellm", port, (pid,), (f"authorization: Bearer {key}",), share=0.05)


def _answers(peer: Peer) -> bool:
    body = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"x"}}],"max_tokens":128}}'.encode()
    headers = dict(header.split(": ", 1) for header in (*peer.headers, "content-type: application/json"))
    url = f"http://127.0.0.1:{peer.port}/v1/chat/completions"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5) as answer:
            return answer.status == 200
    except OSError:
        time.sleep(0.2)
        return False
