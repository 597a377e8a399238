"""The supervisor over real processes: order, restarts, grace, hurry, and what a kill -9 leaves."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.embedded.child import tied
from controlplane.embedded.supervisor import STATUS_FILE, Part, PartFailed, Supervisor, rotate

ROOT = Path(__file__).resolve().parents[2]

# Notes its start, each signal it is sent, and its end, in the file that its working life is told from.
DIARY = """
import os, signal, sys, time
name, diary, stubborn = sys.argv[1], sys.argv[2], sys.argv[3:] == ["stubborn"]
def note(what):
    with open(diary, "a") as file:
        file.write(f"{name} {what}\\n")
def on_signal(number, frame):
    note(signal.Signals(number).name)
    if not stubborn:
        sys.exit(0)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, on_signal)
note(f"starts {os.getpid()}")
while True:
    time.sleep(0.05)
"""


class Diary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def part(self, name: str, *flags: str, **options: object) -> Part:
        argv = (sys.executable, "-c", DIARY, name, str(self.path), *flags)
        return Part(name, argv, ready=lambda: bool(self.pids(name)), **options)  # type: ignore[arg-type]

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def pids(self, name: str) -> list[int]:
        return [int(line.split()[2]) for line in self.lines() if line.startswith(f"{name} starts")]

    def signals(self) -> list[str]:
        return [line for line in self.lines() if " starts " not in line]


@pytest.fixture
def diary(tmp_path: Path) -> Iterator[Diary]:
    diary = Diary(tmp_path / "diary")
    yield diary
    names = {line.split()[0] for line in diary.lines()}
    left = [pid for name in names for pid in diary.pids(name) if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [], "the supervisor left processes behind"


async def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def new_supervisor(tmp_path: Path, said: list[str]) -> Supervisor:
    return Supervisor(tmp_path, dict(os.environ), said.append)


def test_a_killed_part_starts_again_and_its_neighbours_run_on(tmp_path: Path, diary: Diary) -> None:
    async def scenario() -> None:
        said: list[str] = []
        supervisor = new_supervisor(tmp_path, said)
        await supervisor.start([diary.part("meter"), diary.part("gateway")])
        os.kill(diary.pids("meter")[0], signal.SIGKILL)
        await until(lambda: len(diary.pids("meter")) == 2)
        assert len(diary.pids("gateway")) == 1
        assert json.loads((tmp_path / STATUS_FILE).read_text()) == {
            "meter": {"pid": diary.pids("meter")[1], "failures": 1},
            "gateway": {"pid": diary.pids("gateway")[0], "failures": 0},
        }
        assert said == [f"meter ended (SIGKILL), starts again in 0.5 s; see {tmp_path / 'log' / 'meter.log'}"]
        await supervisor.stop(lambda names: None)
        assert not (tmp_path / STATUS_FILE).exists()

    asyncio.run(scenario())


def test_the_last_wave_stops_first_and_each_part_gets_its_own_signal(tmp_path: Path, diary: Diary) -> None:
    async def scenario() -> list[str]:
        supervisor = new_supervisor(tmp_path, [])
        await supervisor.start([diary.part("agent", stop_signal=signal.SIGINT)])
        await supervisor.start([diary.part("worker")])
        await supervisor.start([diary.part("gateway")])
        waves: list[str] = []
        await supervisor.stop(waves.append)
        return waves

    assert asyncio.run(scenario()) == ["gateway", "worker", "agent"]
    assert diary.signals() == ["gateway SIGTERM", "worker SIGTERM", "agent SIGINT"]


def test_a_part_that_ignores_its_signal_is_killed_when_its_grace_is_over(tmp_path: Path, diary: Diary) -> None:
    async def scenario() -> list[str]:
        said: list[str] = []
        supervisor = new_supervisor(tmp_path, said)
        await supervisor.start([diary.part("worker", "stubborn", grace_s=0.3)])
        await supervisor.stop(lambda names: None)
        return said

    assert asyncio.run(scenario()) == ["worker did not stop in time and is killed"]


def test_a_hurry_cuts_every_grace_short(tmp_path: Path, diary: Diary) -> None:
    async def scenario() -> float:
        supervisor = new_supervisor(tmp_path, [])
        await supervisor.start([diary.part("agent", "stubborn", grace_s=60, hurry_signal=signal.SIGKILL)])
        await supervisor.start([diary.part("gateway", "stubborn", grace_s=60)])
        stop = asyncio.create_task(supervisor.stop(lambda names: None))
        await until(lambda: diary.signals() == ["gateway SIGTERM"])
        began_s = time.monotonic()
        supervisor.hurry()
        await stop
        return time.monotonic() - began_s

    assert asyncio.run(scenario()) < 5


def test_a_part_that_cannot_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        supervisor = new_supervisor(tmp_path, [])
        try:
            await supervisor.start([Part("lender", ("sh", "-c", "echo no such table: float; exit 3"))])
        finally:
            await supervisor.stop(lambda names: None)

    with pytest.raises(PartFailed, match=r"(?s)lender does not start \(exit 3\).*no such table: float"):
        asyncio.run(scenario())


def test_a_program_that_is_absent_is_reported_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        supervisor = new_supervisor(tmp_path, [])
        try:
            await supervisor.start([Part("redis", ("/nowhere/redis-server",))])
        finally:
            await supervisor.stop(lambda names: None)

    with pytest.raises(PartFailed, match=r"redis does not start \(.*/nowhere/redis-server"):
        asyncio.run(scenario())


def test_whatever_prepare_trips_over_is_said_and_tried_again(tmp_path: Path, diary: Diary) -> None:
    troubles: list[Exception] = [ValueError("half a configuration"), KeyError("port")]

    def prepare() -> None:
        if troubles:
            raise troubles.pop(0)

    async def scenario() -> list[str]:
        said: list[str] = []
        supervisor = new_supervisor(tmp_path, said)
        await supervisor.start([diary.part("redis", prepare=prepare)])
        await supervisor.stop(lambda names: None)
        return said

    first, second = asyncio.run(scenario())
    assert "redis ended (half a configuration)" in first
    assert "redis ended ('port')" in second
    assert len(diary.pids("redis")) == 1


def test_children_end_with_a_supervisor_that_is_killed(tmp_path: Path, diary: Diary) -> None:
    part = diary.part("web")
    argv = tied(list(part.argv), signal.SIGTERM)
    code = f"import subprocess; subprocess.Popen({argv!r}, start_new_session=True).wait()"
    with subprocess.Popen([sys.executable, "-c", code]) as supervisor:
        asyncio.run(until(lambda: bool(diary.pids("web"))))
        supervisor.kill()
    asyncio.run(until(lambda: not Path(f"/proc/{diary.pids('web')[0]}").exists()))
    assert diary.signals() == ["web SIGTERM"]


def test_a_long_log_moves_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        rotate(log, limit_bytes=1000)
        assert log.stat().st_size == 100
        writer.write(b"y" * 1000)
        rotate(log, limit_bytes=1000)
        writer.write(b"after")
    assert log.read_bytes() == b"after"
    assert (tmp_path / "web.log.1").stat().st_size == 1100
