"""Keeps processes running: waves start one after another, a crashed part starts again, stop goes backwards.

Each part leads its own session, so that Ctrl-C reaches the supervisor alone and it decides the order.
"""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

STATUS_FILE = "parts.json"
SETTLE_S = 1.0
POLL_S = 0.1
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.5, 30.0
HEALTHY_S = 60.0  # a part that ran so long starts its back-off anew
START_ATTEMPTS = 3
HURRY_S = 5.0
LOG_LIMIT_BYTES = 10 * 2**20
ROTATE_EVERY_S = 30.0


class PartFailed(Exception):
    """A part did not come up; the text says which, its last words and where its log is."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process to keep.

    `ready` blocks briefly and says whether it serves; without it, a part is ready once it has run for
    SETTLE_S. `prepare` runs before every start. After `grace_s` of `stop_signal` it is killed; a second
    Ctrl-C sends `hurry_signal` at once.
    """

    name: str
    argv: tuple[str, ...]
    ready: Callable[[], bool] | None = None
    prepare: Callable[[], None] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    hurry_signal: signal.Signals = signal.SIGKILL
    grace_s: float = 15.0
    start_within_s: float = 60.0


@dataclass(slots=True)
class _Keeper:
    """Runs one part until told to stop."""

    part: Part
    log: Path
    environment: Mapping[str, str]
    say: Callable[[str], None]
    started: Callable[[], None]
    process: asyncio.subprocess.Process | None = None
    started_at_s: float = 0.0
    failures: int = 0
    ending: str = ""
    stopping: bool = False
    loop: asyncio.Task[None] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep(self) -> None:
        """Start the part, and again with back-off whenever it ends."""
        backoff_s = FIRST_BACKOFF_S
        while not self.stopping:
            try:
                self.ending = _ending(await self._run_once())
            except Exception as error:  # noqa: BLE001  whatever it is, the part must be kept
                # An absent program, a full disk, a taken port, a fault in `prepare`: the next attempt may succeed.
                self.ending = str(error) or type(error).__name__
            if self.stopping:
                return
            self.failures += 1
            if time.monotonic() - self.started_at_s > HEALTHY_S:
                backoff_s = FIRST_BACKOFF_S
            self.say(f"{self.part.name} ended ({self.ending}), starts again in {backoff_s:g} s; see {self.log}")
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    async def _run_once(self) -> int:
        """One life of the process: its return code."""
        if self.part.prepare is not None:
            await asyncio.to_thread(self.part.prepare)
        with self.log.open("ab") as log:
            self.ended.clear()
            self.process = await asyncio.create_subprocess_exec(
                *self.part.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environment),
                start_new_session=True,
            )
        self.started_at_s = time.monotonic()
        self.started()
        code = await self.process.wait()
        self.ended.set()
        return code

    def runs(self) -> bool:
        """Whether its process is alive."""
        return self.process is not None and self.process.returncode is None

    async def wait_ready(self) -> None:
        """Until the part serves. PartFailed when it keeps ending or takes too long."""
        deadline = time.monotonic() + self.part.start_within_s
        while time.monotonic() < deadline and self.failures < START_ATTEMPTS:
            if self.runs() and await self._is_ready():
                return
            await asyncio.sleep(POLL_S)
        what = f"is not ready after {self.part.start_within_s:g} s"
        if self.failures:
            what = f"does not start ({self.ending})"
        raise PartFailed(f"{self.part.name} {what}; its log {self.log} ends with:\n{last_lines(_read(self.log))}")

    async def _is_ready(self) -> bool:
        if self.part.ready is None:
            return time.monotonic() - self.started_at_s >= SETTLE_S
        return await asyncio.to_thread(self.part.ready)

    async def stop(self, hurry: asyncio.Event) -> None:
        """End the part: its signal and grace, or at once when in a hurry; in the end its whole session."""
        self.stopping = True
        if self.process is not None and self.runs():
            self.process.send_signal(self.part.stop_signal)
            await _first(self.ended, hurry, timeout_s=self.part.grace_s)
            if self.runs() and hurry.is_set():
                self.process.send_signal(self.part.hurry_signal)
                await _first(self.ended, timeout_s=HURRY_S)
            if self.runs():
                self.say(f"{self.part.name} did not stop in time and is killed")
                os.killpg(self.process.pid, signal.SIGKILL)
                await self.ended.wait()
        if self.loop is not None:
            self.loop.cancel()


class Supervisor:
    """Keeps what `start` was given until `stop`; `say` gets one sentence per incident.

    Each part's output is appended to `state/log/<name>.log`. `state/parts.json` tells other processes
    what runs: {name: {"pid", "failures"}}; it is gone when nothing does.
    """

    def __init__(self, state: Path, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._log_dir = state / "log"
        self._log_dir.mkdir(exist_ok=True)
        self._status = state / STATUS_FILE
        self._environment = environment
        self._say = say
        self._waves: list[list[_Keeper]] = []
        self._hurry = asyncio.Event()
        self._rotation: asyncio.Task[None] | None = None

    async def start(self, wave: list[Part]) -> None:
        """Start these side by side and wait until all are ready. PartFailed when one is not."""
        if self._rotation is None:
            self._rotation = asyncio.create_task(self._rotate())
        keepers: list[_Keeper] = []
        self._waves.append(keepers)
        for part in wave:
            keeper = _Keeper(part, self._log_dir / f"{part.name}.log", self._environment, self._say, self._note)
            keeper.loop = asyncio.create_task(keeper.keep(), name=part.name)
            keepers.append(keeper)
        await asyncio.gather(*(keeper.wait_ready() for keeper in keepers))

    def hurry(self) -> None:
        """Stop waiting for anybody's grace."""
        self._hurry.set()

    async def stop(self, progress: Callable[[str], None]) -> None:
        """End everything, the last wave first; `progress` gets the names of each wave."""
        if self._rotation is not None:
            self._rotation.cancel()
        for wave in reversed(self._waves):
            progress(", ".join(keeper.part.name for keeper in wave))
            await asyncio.gather(*(keeper.stop(self._hurry) for keeper in wave))
        self._waves.clear()
        self._status.unlink(missing_ok=True)

    def _note(self) -> None:
        """Write down what runs, whole or not at all."""
        running = {
            keeper.part.name: {"pid": keeper.process.pid, "failures": keeper.failures}
            for wave in self._waves
            for keeper in wave
            if keeper.process is not None
        }
        partial = self._status.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(running, indent=1) + "\n")
            partial.replace(self._status)
        except OSError as error:
            # The part runs all the same: taking this for its end would start it twice.
            self._say(f"cannot write {self._status}: {error.strerror}")

    async def _rotate(self) -> None:
        while True:
            for log in self._log_dir.glob("*.log"):
                await asyncio.to_thread(rotate, log)
            await asyncio.sleep(ROTATE_EVERY_S)


def rotate(log: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
    """Move a log that is too long to `<name>.log.1`; its writer appends and goes on in the emptied file."""
    if log.stat().st_size > limit_bytes:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


async def _first(*events: asyncio.Event, timeout_s: float) -> None:
    """Until the first of these is set or the time is over."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _ending(code: int) -> str:
    return f"exit {code}" if code >= 0 else signal.Signals(-code).name


def last_lines(text: str, count: int = 8) -> str:
    """The end of a log or of what a command said, indented to stand under a sentence."""
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines()[-count:])


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else "(nothing)"
