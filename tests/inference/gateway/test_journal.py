"""The journal on a real disk: groups, segments, freeing, failure."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import orjson
import pytest

from inference.gateway import boot_log, disk, journal, recovery
from inference.gateway.disk import Disk
from inference.gateway.journal import Journal
from kernel.ids import new_id
from kernel.usage import ENGINE_FINAL, TOKENS, UsageEvent


def event(out: int = 1, finish: str = "stop") -> UsageEvent:
    now = datetime.now(UTC)
    return UsageEvent(
        event_id=new_id(),
        source="gw",
        tenant_id=uuid4(),
        subject_id=uuid4(),
        kind=TOKENS,
        sku="s",
        region="r",
        currency="USD",
        started_at=now,
        ended_at=now,
        counts={"in_hit": 0, "in_miss": 1, "out": out},
        sheet=bytes(32),
        quoted_pico=out,
        provenance=ENGINE_FINAL,
        finish=finish,
    )


def fail(failure: OSError) -> None:
    raise AssertionError(failure)


def outs(log: boot_log.BootLog, seq: int = 1, limit: int = 1000) -> list[int]:
    """The pages from `seq` on, as output counts, numbers checked."""
    found: list[int] = []
    while bodies := log.read(seq, limit):
        for body in map(orjson.loads, bodies):
            assert body["seq"] == seq
            found.append(body["event"]["counts"]["out"])
            seq += 1
    return found


def test_events_keep_their_order_and_numbers_through_segments_and_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 20_000)
    left_open = event(out=0, finish="gateway_crash")

    async def write() -> Journal:
        made = Journal(tmp_path, new_id(), fail)
        await made.open(left_open.to_json())
        made.progress(
            str(left_open.subject_id), {"in_hit": 0, "in_miss": 1, "out": 77}, 77, "2026-11-24T00:00:00+00:00"
        )
        for number in range(200):
            one = event(out=number)
            await made.open(one.to_json())
            await made.close(one.to_json())
        await made.finish()
        return made

    made = asyncio.run(write())
    assert len(made.log.segments) > 5
    assert outs(made.log) == outs(made.log, limit=3) == list(range(200))
    made.log.free_below(150)
    assert outs(made.log, 150) == list(range(149, 200))
    assert made.log.segments[0].first_seq > 100
    (boot,), (recovered,) = recovery.recover(tmp_path)
    assert recovered.subject_id == left_open.subject_id
    assert recovered.event_id == left_open.event_id
    assert (recovered.counts["out"], recovered.quoted_pico) == (77, 77)
    assert boot.head == 201
    assert outs(boot, 150) == [*range(149, 200), 77]
    again, nothing = recovery.recover(tmp_path)
    assert nothing == []
    assert outs(again[0], 150) == outs(boot, 150)
    boot.free_below(202)
    assert not boot.directory.exists()


def test_a_boot_whose_events_are_all_freed_still_numbers_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 1)
    left_open = event(out=0, finish="gateway_crash")

    async def write() -> None:
        made = Journal(tmp_path, new_id(), fail)
        await made.open(left_open.to_json())
        for _ in range(3):
            await made.close(event().to_json())
        await made.open(event().to_json())
        made.log.free_below(4)
        await made.finish()

    asyncio.run(write())
    (boot,), recovered = recovery.recover(tmp_path)
    assert len(recovered) == 2
    assert boot.head == 5
    assert outs(boot, 4) == [0, 1]


def test_many_writers_share_a_disk_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = 0
    write = Disk.write

    def counted(one: Disk, fd: int, data: bytes) -> None:
        nonlocal waits
        waits += 1
        write(one, fd, data)

    async def run() -> Journal:
        made = Journal(tmp_path, new_id(), fail)
        monkeypatch.setattr(Disk, "write", counted)
        await asyncio.gather(*[made.close(event(out=number).to_json()) for number in range(500)])
        await made.finish()
        return made

    made = asyncio.run(run())
    assert made.log.head == 500
    assert outs(made.log) == list(range(500))
    assert waits <= 3


def test_nothing_is_shown_before_the_disk_has_it(tmp_path: Path) -> None:
    async def run() -> None:
        made = Journal(tmp_path, new_id(), fail)
        closing = asyncio.ensure_future(made.close(event().to_json()))
        await asyncio.sleep(0)
        assert made.log.head == 0
        assert outs(made.log) == []
        await closing
        assert outs(made.log) == [1]
        await made.finish()

    asyncio.run(run())


def test_a_dropped_request_is_not_recovered(tmp_path: Path) -> None:
    async def run() -> None:
        made = Journal(tmp_path, new_id(), fail)
        one = event()
        await made.open(one.to_json())
        made.drop(str(one.subject_id))
        await made.finish()

    asyncio.run(run())
    (boot,), recovered = recovery.recover(tmp_path)
    assert (boot.head, recovered) == (0, [])


def test_fault_14_a_failed_write_is_told_and_never_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[OSError] = []

    def broken(_: Disk, fd: int, data: bytes) -> None:
        raise OSError(5, "Input/output error")

    async def run() -> None:
        made = Journal(tmp_path, new_id(), failures.append)
        monkeypatch.setattr(Disk, "write", broken)
        with pytest.raises(journal.Failed):
            await made.close(event().to_json())
        monkeypatch.undo()
        with pytest.raises(journal.Failed):
            await made.close(event().to_json())
        assert made.log.head == 0

    asyncio.run(run())
    assert len(failures) == 1


def test_what_lies_behind_a_broken_segment_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 1)

    async def run() -> None:
        made = Journal(tmp_path, new_id(), fail)
        for number in range(4):
            await made.close(event(out=number).to_json())
        await made.finish()

    asyncio.run(run())
    segments = sorted(tmp_path.glob("*/*.log"))
    damaged = segments[2]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    (boot,), _ = recovery.recover(tmp_path)
    assert outs(boot) == list(range(boot.head))
    assert boot.head == 1
    assert len(list(tmp_path.glob("*/*.unreadable"))) == len(segments) - 3


def test_a_progress_that_can_wait_does_not_hold_up_what_cannot(tmp_path: Path) -> None:
    async def run() -> float:
        made = Journal(tmp_path, new_id(), fail)
        one = event()
        await made.open(one.to_json())
        made.progress(str(one.subject_id), {"out": 1}, 1, "2026-11-24T00:00:00+00:00")
        began = asyncio.get_running_loop().time()
        await made.close(one.to_json())
        took_s = asyncio.get_running_loop().time() - began
        await made.finish()
        return took_s

    assert asyncio.run(run()) < journal.PROGRESS_DELAY_S


def test_the_disk_says_when_it_has_what_was_written_and_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    async def run() -> list[OSError | None]:
        told: list[OSError | None] = []
        durable = asyncio.Event()

        def ended(failure: OSError | None) -> None:
            told.append(failure)
            durable.set()

        made = Disk(asyncio.get_running_loop(), ended)
        with (tmp_path / "file").open("wb", buffering=0) as file:
            for data in (b"one ", b"two"):
                durable.clear()
                made.write(file.fileno(), data)
                await durable.wait()
        reads, writes = os.pipe()
        with pytest.raises(OSError, match="Invalid argument"):
            made.write(writes, b"a pipe keeps nothing")
        for fd in (reads, writes):
            os.close(fd)
        made.close()
        return told

    assert asyncio.run(run()) == [None, None]
    assert (tmp_path / "file").read_bytes() == b"one two"


def test_without_the_kernels_asynchronous_io_a_thread_waits_and_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk, "_SETUP", -1)  # a system call that no kernel has: ENOSYS
    failures: list[OSError] = []

    async def run() -> Journal:
        made = Journal(tmp_path, new_id(), failures.append)
        await asyncio.gather(*[made.close(event(out=number).to_json()) for number in range(50)])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", refuses)
            with pytest.raises(journal.Failed):
                await made.close(event().to_json())
        await made.finish()
        return made

    def refuses(fd: int) -> None:
        raise OSError(5, "Input/output error")

    assert outs(asyncio.run(run()).log) == list(range(50))
    assert [failure.errno for failure in failures] == [5]
    assert "Function not implemented" in caplog.text
    assert "sysctl fs.aio-max-nr" in caplog.text
