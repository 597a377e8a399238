"""What survives the process: kill -9, a torn journal, a full disk, an orderly stop."""

import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.inference.gateway.booked import assert_booked
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.test_errors import refused
from tests.inference.gateway.world import HELLO, Gateway, Tenant, World, gateway
from tests.services import wait_until


def stream_in_background(door: Gateway, tenant: Tenant, model: str) -> list[str]:
    """Lines of a stream that another thread reads until it breaks."""
    lines: list[str] = []

    def read() -> None:
        body = {**HELLO, "model": model, "stream": True, "max_tokens": 4000}
        try:
            with httpx2.stream(
                "POST", f"{door.url}/v1/chat/completions", headers=tenant.headers, json=body, timeout=30
            ) as answer:
                lines.extend(line for line in answer.iter_lines() if line)
        except httpx2.TransportError:
            lines.append("broken")

    threading.Thread(target=read, daemon=True).start()
    return lines


def call_often(door: Gateway, tenant: Tenant, model: str) -> None:
    """A hundred requests, one after another."""
    for _ in range(100):
        door.chat(tenant, model)


def test_killed_in_mid_stream_it_bills_the_last_progress_once_after_its_restart(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    with gateway(world, tmp_path) as door:
        assert door.chat(tenant, route.endpoint_id).status_code == 200
        wait_until(lambda: tenant.reserved() == 0, "settlement")
        before = tenant.free()
        engine.plan = Plan(tokens=4000, interval_s=0.01)
        lines = stream_in_background(door, tenant, route.endpoint_id)
        wait_until(lambda: engine.tokens_made > 250, "250 tokens")
        door.kill()
        made = engine.tokens_made
        wait_until(lambda: lines[-1:] == ["broken"], "the client's notice")
        door.start()
        first, second = door.events_of(tenant, at_least=2)
        assert first.finish == "stop"
        assert second.finish == "gateway_crash"
        assert second.provenance == "engine_partial"
        assert 50 < second.counts["out"] <= made
        assert second.counts["in_miss"] == 10
        assert second.subject_id != first.subject_id
        wait_until(lambda: tenant.free() == before - second.quoted_pico, "settlement of what was recovered")
        assert tenant.concurrent() == 0
        boots = door.boots()["boots"]
        assert [boot["closed"] for boot in boots] == [True, False]
        door.kill()
        door.start()
        assert len(door.events_of(tenant)) == 2
        assert_booked(door, tenant, 2)
        for boot in door.boots()["boots"][:2]:
            door.inside("GET", f"/internal/journal/{boot['boot_id']}?from={boot['head'] + 1}")
        assert len(door.boots()["boots"]) == 1


def test_fault_1_killed_before_any_progress_it_bills_nothing(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    with gateway(world, tmp_path) as door:
        before = tenant.free()
        engine.plan = Plan(wait_s=30)
        stream_in_background(door, tenant, route.endpoint_id)
        wait_until(lambda: len(engine.asked) == 1, "the engine's request")
        door.kill()
        door.start()
        (event,) = door.events_of(tenant)
        assert event.counts == {"in_hit": 0, "in_miss": 0, "out": 0}
        assert event.finish == "gateway_crash"
        wait_until(lambda: tenant.free() == before, "the money's return")
        assert_booked(door, tenant, 1)


def test_fault_15_a_torn_or_flipped_tail_is_cut_and_what_lies_before_it_is_kept(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    with gateway(world, tmp_path) as door:
        for _ in range(3):
            assert door.chat(tenant, route.endpoint_id).status_code == 200
        door.kill()
        (segment,) = (tmp_path / "journal" / "gw-test").glob("*/*.log")
        data = bytearray(segment.read_bytes())
        data[-20] ^= 0x40
        segment.write_bytes(bytes(data) + b"\x99\x00\x00")
        door.start()
        events = door.events_of(tenant, at_least=3)
        assert [event.finish for event in events] == ["stop", "stop", "gateway_crash"]
        assert "cut at byte" in door.log.read_text()
        assert "gateway_journal_cuts_total 1" in door.inside("GET", "/internal/metrics").text
        assert_booked(door, tenant, 3)


def test_fault_13_a_journal_that_cannot_be_written_ends_the_process_with_an_error(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    with gateway(world, tmp_path, start=False) as door:
        door.start()
        assert door.process is not None
        resource.prlimit(door.process.pid, resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
        with pytest.raises(httpx2.TransportError):
            call_often(door, tenant, route.endpoint_id)
        assert door.process.wait(5) == 74
        door.start()
        assert_booked(door, tenant, len(door.events_of(tenant, at_least=10)))


def test_fault_13_a_nearly_full_disk_admits_nothing_says_so_and_lets_what_runs_finish(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    flag = tmp_path / "full"
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK.format(flag=str(flag)))
    with gateway(world, tmp_path, start=False) as door:
        door.environment["PYTHONPATH"] += f":{tmp_path}"
        door.start()
        engine.plan = Plan(tokens=100, interval_s=0.02)
        lines = stream_in_background(door, tenant, route.endpoint_id)
        wait_until(lambda: engine.tokens_made > 5, "a few tokens")
        flag.touch()
        wait_until(lambda: door.ready().status_code == 503, "notice of the disk", 2)
        assert door.ready().json()["reasons"] == ["the journal's disk is nearly full"]
        assert "gateway_admits 0" in door.inside("GET", "/internal/metrics").text
        answer = door.chat(tenant, route.endpoint_id)
        refused(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        wait_until(lambda: lines[-1:] == ["data: [DONE]"], "the end of the stream")
        flag.unlink()
        engine.plan = Plan()
        wait_until(lambda: door.ready().status_code == 200, "room again", 2)
        assert door.chat(tenant, route.endpoint_id).status_code == 200
        assert [event.counts["out"] for event in door.events_of(tenant, at_least=2)] == [100, 5]
        assert_booked(door, tenant, 2)


def test_fault_1_killed_with_two_hundred_streams_open_it_loses_two_seconds_of_each_at_most(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    body = json.dumps({**HELLO, "model": route.endpoint_id, "stream": True, "max_tokens": 4000}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant.text}\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    engine.plan = Plan(tokens=4000, interval_s=0.05)
    with gateway(world, tmp_path) as door, ExitStack() as held:
        before = tenant.free()
        host, port = door.url.removeprefix("http://").split(":")
        for _ in range(200):
            sock = held.enter_context(socket.create_connection((host, int(port))))
            sock.sendall(request)
        wait_until(lambda: tenant.concurrent() == 200, "200 streams")
        wait_until(lambda: engine.tokens_made > 200 * 60, "three seconds of tokens", 60)
        door.kill()
        made = engine.tokens_made
        door.start()
        events = door.events_of(tenant, at_least=200)
        assert len(events) == len({event.subject_id for event in events}) == 200
        assert {(event.finish, event.provenance) for event in events} == {("gateway_crash", "engine_partial")}
        assert all(event.counts["out"] > 0 for event in events)
        billed = sum(event.counts["out"] for event in events)
        assert made - 200 * 512 < billed <= made
        cost = sum(event.quoted_pico for event in events)
        wait_until(lambda: tenant.free() == before - cost, "settlement of what was recovered")
        assert tenant.reserved() == tenant.concurrent() == 0
        assert_booked(door, tenant, 200)


KILLED_BEHIND_ITS_CLOSE = """
import os, signal
from inference.gateway.journal import Journal
close = Journal.close
async def then_die(self, event):
    await close(self, event)
    os.kill(os.getpid(), signal.SIGKILL)
Journal.close = then_die
"""
KILLED_BEFORE_ITS_OPEN = """
import os, signal
from inference.gateway.journal import Journal
async def die(self, event):
    os.kill(os.getpid(), signal.SIGKILL)
Journal.open = die
"""


FULL_DISK = """
import os, shutil
usage = shutil.disk_usage
def full(path):
    found = usage(path)
    return found._replace(used=found.total * 9 // 10 + 1) if os.path.exists({flag!r}) else found
shutil.disk_usage = full
"""


@contextmanager
def faulty(door: Gateway, folder: Path, fault: str) -> Iterator[None]:
    """Within the block a gateway runs with this fault in it, and dies of it."""
    path = door.environment["PYTHONPATH"]
    (folder / "fault").mkdir()
    (folder / "fault" / "sitecustomize.py").write_text(fault)
    door.environment["PYTHONPATH"] = f"{path}:{folder / 'fault'}"
    door.start()
    yield
    assert door.process is not None
    assert door.process.wait(10) == -signal.SIGKILL
    door.environment["PYTHONPATH"] = path


@pytest.mark.parametrize("stream", [False, True])
def test_fault_2_killed_between_its_close_and_the_last_chunk_a_request_is_billed_once(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path, stream: bool
) -> None:
    route = world.endpoint(tenant, engine.address)
    before = tenant.free()
    with gateway(world, tmp_path, start=False) as door:
        with faulty(door, tmp_path, KILLED_BEHIND_ITS_CLOSE), pytest.raises(httpx2.TransportError):
            door.chat(tenant, route.endpoint_id, stream=stream)
        door.start()
        (event,) = door.events_of(tenant)
        assert (event.counts["out"], event.provenance) == (5, "engine_final")
        assert door.chat(tenant, route.endpoint_id, stream=stream).status_code == 200
        first, repeated = door.events_of(tenant, at_least=2)
        assert first.subject_id == event.subject_id != repeated.subject_id
        door.kill()
        door.start()
        assert len(door.events_of(tenant)) == 2
        assert tenant.free() == before - first.reserved_pico - repeated.quoted_pico  # the rest comes with the hold
        assert_booked(door, tenant, 2)


def test_a_boot_admits_only_after_the_meter_has_asked(
    world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    with gateway(world, tmp_path, start=False) as door:
        door.start(known=False)
        answer = door.chat(tenant, route.endpoint_id)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert door.ready().json()["reasons"] == ["the meter has not asked for this boot's journal yet"]
        door.introduce()
        assert door.chat(tenant, route.endpoint_id).status_code == 200


def test_two_processes_cannot_share_an_id(world: World, tmp_path: Path) -> None:
    with gateway(world, tmp_path), gateway(world, tmp_path, start=False) as second:
        with pytest.raises(AssertionError):
            second.start()
        assert second.process is not None
        assert second.process.wait(5) == 2
        assert "own GATEWAY_ID" in second.log.read_text()


def test_two_processes_serve_one_port(world: World, engine: Engine, tenant: Tenant, tmp_path: Path) -> None:
    route = world.endpoint(tenant, engine.address)
    with gateway(world, tmp_path, GATEWAY_REUSE_PORT="1") as one:
        settings = {
            "GATEWAY_REUSE_PORT": "1",
            "GATEWAY_ID": "gw-two",
            "GATEWAY_LISTEN": one.environment["GATEWAY_LISTEN"],
        }
        with gateway(world, tmp_path, start=False, **settings) as two:
            two.url = one.url
            two.start()
            for _ in range(40):
                assert one.chat(tenant, route.endpoint_id).status_code == 200
            assert len(one.events_of(tenant)) + len(two.events_of(tenant)) == 40


def test_sigterm_lets_a_stream_finish_and_takes_no_other(
    world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    with gateway(world, tmp_path) as door:
        engine.plan = Plan(tokens=60, interval_s=0.02)
        lines = stream_in_background(door, tenant, route.endpoint_id)
        wait_until(lambda: engine.tokens_made > 5, "a few tokens")
        assert door.terminate() == 0
        wait_until(lambda: lines[-1:] == ["data: [DONE]"], "the end of the stream")
        with pytest.raises(httpx2.TransportError):
            door.chat(tenant, route.endpoint_id)
        door.start()
        (event,) = door.events_of(tenant)
        assert (event.counts["out"], event.provenance) == (60, "engine_final")


def test_sigterm_cuts_what_outlasts_the_drain_and_bills_what_was_delivered(
    world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    with gateway(world, tmp_path, GATEWAY_DRAIN_S="0.5") as door:
        before = tenant.free()
        engine.plan = Plan(tokens=4000, interval_s=0.02)
        lines = stream_in_background(door, tenant, route.endpoint_id)
        wait_until(lambda: engine.tokens_made > 5, "a few tokens")
        began = time.monotonic()
        assert door.terminate() == 0
        assert time.monotonic() - began < 3
        wait_until(lambda: "error" in json.loads(lines[-1].removeprefix("data: ")), "the end of the stream")
        door.start()
        (event,) = door.events_of(tenant)
        assert event.finish == "time_limit"
        assert 5 <= event.counts["out"] <= 60
        assert tenant.free() == before - event.quoted_pico
