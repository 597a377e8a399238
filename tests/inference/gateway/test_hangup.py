"""A client that leaves is billed once, for what reached it; the engine is left at once."""

import contextlib
import ctypes
import json
import socket
import struct
import time
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest

from tests.inference.gateway.booked import assert_booked
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.test_edge import rss_bytes
from tests.inference.gateway.world import HELLO, ROOT, Gateway, Tenant, World, gateway
from tests.services import wait_until

LATE_S = 1.0
LATE_DISK = f"""
from inference.gateway import disk

made = disk.Disk.__init__

def late(self, loop, on_durable):
    made(self, loop, lambda failure: loop.call_later({LATE_S}, on_durable, failure))

disk.Disk.__init__ = late
"""
SO_ATTACH_FILTER = 26  # of Linux; the socket module has no name for it


def read_tokens(door: Gateway, tenant: Tenant, model: str, tokens: int, *, rest_s: float = 0.0) -> int:
    """Stream until `tokens` chunks with text were read, then hang up."""
    seen = 0
    body = {**HELLO, "model": model, "stream": True, "max_tokens": 4000}
    with httpx2.stream("POST", f"{door.url}/v1/chat/completions", headers=tenant.headers, json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                seen += 1
            if seen == tokens:
                time.sleep(rest_s)
                break
    return seen


def rests(engine: Engine) -> bool:
    """Whether the engine makes nothing for half a second."""
    made = engine.tokens_made
    time.sleep(0.5)
    return engine.tokens_made == made


def test_a_hang_up_in_mid_stream_bills_what_was_delivered_once(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=4000, interval_s=0.02)
    before = tenant.free()
    read_tokens(door, tenant, route.endpoint_id, 20)
    wait_until(lambda: engine.hung_up == 1, "the engine's release", 1)
    (event,) = door.events_of(tenant)
    assert 19 <= event.counts["out"] <= 22
    assert event.counts["in_miss"] == 10
    assert (event.finish, event.provenance) == ("abort_client", "engine_partial")
    assert event.counts["out"] + event.waste <= engine.tokens_made
    wait_until(lambda: tenant.free() == before - event.quoted_pico, "settlement")
    time.sleep(0.3)
    assert len(door.events_of(tenant)) == 1


def test_fault_37_a_client_that_reads_a_byte_at_a_time_is_cut_and_billed_to_the_cut_in_bounded_memory(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    body = json.dumps({**HELLO, "model": route.endpoint_id, "stream": True, "max_tokens": 4000}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant.text}\r\n"
    with gateway(world, tmp_path, GATEWAY_STALL_S="3") as door, socket.socket() as sock:
        assert door.process is not None
        before = rss_bytes(door.process.pid)
        engine.plan = Plan(tokens=200_000, word="x" * 100)
        host, port = door.url.removeprefix("http://").split(":")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((host, int(port)))
        sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        read_at = [time.monotonic()]
        while not door.pull():
            assert read_at[-1] - read_at[0] < 30, "a client that reads is not cut"
            assert len(sock.recv(1)) == 1
            read_at.append(time.monotonic())
            time.sleep(0.2)
        assert time.monotonic() - read_at[0] > 3
        assert max(later - earlier for earlier, later in pairwise(read_at)) < 3, "it did not read all the while"
        assert rss_bytes(door.process.pid) - before < 20 << 20
        assert engine.tokens_made < engine.plan.tokens / 4, "the engine was not held back"
        (event,) = door.events_of(tenant)
        assert (event.finish, event.provenance) == ("abort_client", "engine_partial")
        assert 0 < event.counts["out"] < 1000
        assert_booked(door, tenant, 1)


def test_fault_37_a_client_that_stops_reading_is_billed_what_its_kernel_took(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=200_000, word="x" * 100)
    body = json.dumps({**HELLO, "model": route.endpoint_id, "stream": True, "max_tokens": 4000}).encode()
    host, port = door.url.removeprefix("http://").split(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((host, int(port)))
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant.text}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        sock.sendall(head.encode() + body)
        received = sock.recv(2000)
        wait_until(lambda: rests(engine), "the engine's rest while the client reads nothing")
        made = engine.tokens_made
        assert made < engine.plan.tokens / 4, "the engine was not held back"
        sock.setblocking(False)
        while True:
            try:
                received += sock.recv(65536)
            except BlockingIOError:
                break
            if len(received) > 20_000:
                break
    in_hand = received.count(b'"content":"x')
    (event,) = door.events_of(tenant)
    assert event.finish == "abort_client"
    assert in_hand <= event.counts["out"] + 1
    assert event.counts["out"] < 1000
    assert event.waste > 0
    assert event.counts["out"] + event.waste <= made + 1


def test_fault_37_a_client_that_stalls_is_cut_and_billed_to_the_cut(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=200_000, word="x" * 1000)
    with gateway(world, tmp_path, GATEWAY_STALL_S="0.5") as door:
        body = {**HELLO, "model": route.endpoint_id, "stream": True, "max_tokens": 4000}
        with httpx2.stream("POST", f"{door.url}/v1/chat/completions", headers=tenant.headers, json=body):
            (event,) = door.events_of(tenant)
        assert event.finish == "abort_client"
        assert 0 < event.counts["out"] < 20_000
        assert_booked(door, tenant, 1)


def test_fault_36_a_client_that_vanished_without_a_word_is_left_and_billed_once(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=4000, interval_s=0.02)
    body = json.dumps({**HELLO, "model": route.endpoint_id, "stream": True, "max_tokens": 4000}).encode()
    with gateway(world, tmp_path) as door, socket.socket() as sock:
        host, port = door.url.removeprefix("http://").split(":")
        sock.connect((host, int(port)))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant.text}\r\n"
        sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        sock.recv(4096)
        drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one BPF instruction: return 0
        program = struct.pack("HL", 1, ctypes.addressof(drop_all))
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        (event,) = door.events_of(tenant, within_s=90)
        assert event.finish == "abort_client"
        assert 0 < event.counts["out"] < 100
        wait_until(lambda: engine.hung_up == 1, "the engine's release")
        assert_booked(door, tenant, 1)


def test_leaving_before_an_answer_is_free_and_frees_the_engine(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    before = tenant.free()
    for number, stream in enumerate((False, True), 1):
        engine.plan = Plan(wait_s=30)
        body = {**HELLO, "model": route.endpoint_id, "stream": stream}
        try:
            httpx2.post(f"{door.url}/v1/chat/completions", headers=tenant.headers, json=body, timeout=0.3)
            raise AssertionError("the engine should not have answered")
        except httpx2.ReadTimeout:
            pass
        wait_until(lambda n=number: engine.hung_up == n, "the engine's release", 1)  # type: ignore[misc]
    events = door.events_of(tenant, at_least=2)
    assert [sum(event.counts.values()) for event in events] == [0, 0]
    assert {event.finish for event in events} == {"abort_client"}
    wait_until(lambda: tenant.free() == before, "the money's return")
    assert tenant.concurrent() == 0


def test_a_hang_up_reaches_the_engine_within_a_tenth_of_a_second(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=4000, interval_s=0.01)
    took = []
    for number in range(1, 6):
        read_tokens(door, tenant, route.endpoint_id, 3)
        left_at = time.monotonic()
        wait_until(lambda n=number: engine.hung_up == n, "the engine's release", 2)  # type: ignore[misc]
        took.append(engine.hung_up_at - left_at)
    assert min(took) < 0.1


def test_whoever_leaves_while_the_disk_is_waited_for_has_the_text_that_is_billed(
    world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LATE_DISK)
    route = world.endpoint(tenant, engine.address)
    body = json.dumps({**HELLO, "model": route.endpoint_id}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant.text}\r\n"
    with gateway(world, tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}:{ROOT / 'platform'}") as door:
        host, port = door.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: engine.asked, "the engine's answer")
            sock.settimeout(LATE_S / 2)
            received = b""
            with contextlib.suppress(TimeoutError):
                while piece := sock.recv(4096):
                    received += piece
        (event,) = door.events_of(tenant)
    assert event.counts["out"] == 5
    assert b"word " * 5 in received
    assert not received.endswith(b"}}"), "the end came before the disk had its CLOSE"


@pytest.mark.parametrize("end", ["complete", "hang-up", "error"])
def test_text_without_a_single_token_counted_is_an_alarm(
    world: World, door: Gateway, engine: Engine, tenant: Tenant, end: str
) -> None:
    def alarms() -> int:
        text = door.inside("GET", "/internal/metrics").text
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("gateway_uncounted_total "))

    route = world.endpoint(tenant, engine.address)
    before = alarms()
    engine.plan = Plan(counts=False)
    if end == "hang-up":
        engine.plan = Plan(counts=False, tokens=4000, interval_s=0.01)
        read_tokens(door, tenant, route.endpoint_id, 3)
    elif end == "error":
        engine.plan = Plan(counts=False, error_after=3)
        assert "engine_error" in door.chat(tenant, route.endpoint_id, stream=True).text
    else:
        assert "[DONE]" in door.chat(tenant, route.endpoint_id, stream=True).text
    (event,) = door.events_of(tenant)
    assert event.provenance == "estimated"
    assert sum(event.counts.values()) == 0
    assert alarms() == before + 1


def test_an_engine_error_inside_a_stream_ends_it_with_an_error_and_without_done(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    for plan, number in ((Plan(tokens=9, error_after=3), 1), (Plan(tokens=9, die_after=3), 2)):
        engine.plan = plan
        answer = door.chat(tenant, route.endpoint_id, stream=True)
        assert answer.status_code == 200
        lines = [line for line in answer.text.split("\n\n") if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "engine_error"
        assert "[DONE]" not in answer.text
        event = door.events_of(tenant, at_least=number)[-1]
        assert event.counts == {"in_hit": 0, "in_miss": 10, "out": 3}
        assert (event.finish, event.provenance) == ("error_engine", "engine_partial")


def test_fault_25_a_stream_without_its_last_usage_is_billed_by_the_running_count(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(final_usage=False)
    assert "[DONE]" in door.chat(tenant, route.endpoint_id, stream=True).text
    (event,) = door.events_of(tenant)
    assert (event.counts["out"], event.provenance) == (5, "engine_partial")


@pytest.mark.parametrize("says", [-3, 10**9, "many", 2.5, True])
@pytest.mark.parametrize("stream", [False, True])
def test_fault_25_a_last_count_that_cannot_be_is_clamped_flagged_and_never_billed_above_the_hold(
    world: World, door: Gateway, engine: Engine, tenant: Tenant, stream: bool, says: object
) -> None:
    def flagged() -> int:
        text = door.inside("GET", "/internal/metrics").text
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("gateway_clamped_total "))

    route = world.endpoint(tenant, engine.address)
    before = flagged()
    engine.plan = Plan(says=says)
    assert door.chat(tenant, route.endpoint_id, stream=stream).status_code == 200
    (event,) = door.events_of(tenant)
    assert event.counts["out"] == (5 if stream else 0)  # the last good count
    assert event.quoted_pico <= event.reserved_pico
    assert event.engine_usage is not None
    assert flagged() == before + 1


def test_a_request_longer_than_the_limit_is_cut_and_billed(
    world: World, engine: Engine, tenant: Tenant, tmp_path: object
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=4000, interval_s=0.05)
    with gateway(world, tmp_path, GATEWAY_LONGEST_S="1") as door:  # type: ignore[arg-type]
        answer = door.chat(tenant, route.endpoint_id, stream=True, max_tokens=4000)
        assert "cut short" in answer.text
        assert "[DONE]" not in answer.text
        (event,) = door.events_of(tenant)
        assert event.finish == "time_limit"
        assert 5 < event.counts["out"] <= 20
