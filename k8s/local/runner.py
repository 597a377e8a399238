"""One pod as a process session: start, probe, restart with back-off, end with grace, adopt after a restart.

The pod's own status, as stored, is all that a new agent needs beside the process record in the folder.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from k8s.cluster import Object
from k8s.local import container, logfile, processes
from k8s.local.node import is_free
from k8s.local.probes import Probe
from k8s.local.rollout import condition, instant, is_terminating

_KILLED_EXIT = 137
_STEADY_S = 600.0
_LOOK_AGAIN_S = 2.0
_MESSAGE_LINES = 20
_MESSAGE_CHARS = 2048


@dataclass(frozen=True, slots=True)
class Settings:
    """What all runners share. Times in seconds; `clock` is monotonic."""

    root: Path
    engines: Path
    workers: Executor
    clock: Callable[[], float]
    backoff_s: float = 10.0
    backoff_most_s: float = 300.0


@dataclass(slots=True)
class _Run:
    """One start of the engine, from exec to the death of its last process."""

    session: processes.Session
    child: subprocess.Popen[bytes] | None
    began_at: float
    log_from: int
    probes: dict[str, Probe]


@dataclass(slots=True)
class _End:
    """An ordered end: SIGTERM at one moment, SIGKILL at a later one."""

    term_at: float
    kill_at: float
    why: str = ""
    told: bool = False


@dataclass(slots=True)
class Runner:
    """Drives one pod. `step` is called about ten times a second and never waits; `status` is what to store."""

    pod: Object
    settings: Settings
    finished: bool = False
    _run: _Run | None = None
    _end: _End | None = None
    _state: dict[str, Any] = field(default_factory=dict)
    _last: dict[str, Any] = field(default_factory=dict)
    _restarts: int = 0
    _failures: int = 0
    _started: bool = False
    _ready: bool = False
    _start_at: float = 0.0

    def __post_init__(self) -> None:
        """Take over what an earlier agent left: the stored status and, if it lives, the engine."""
        stored: dict[str, Any] = next(iter(self.pod["status"].get("containerStatuses", [])), {})
        self._restarts = self._failures = stored.get("restartCount", 0)
        self._last = stored.get("lastState", {})
        self._state = stored.get("state", {}) or {"waiting": {"reason": "ContainerCreating"}}
        self._started, self._ready = stored.get("started", False), stored.get("ready", False)
        self.folder.mkdir(parents=True, exist_ok=True)
        session = processes.recorded(self.folder / "process")
        if session is not None:
            began = self._state.get("running") or {"startedAt": instant(datetime.now(UTC))}
            self._state = {"running": began}
            self._run = _Run(session, None, self.settings.clock(), 0, self._new_probes())
        if is_terminating(self.pod):
            self._order_end()

    @property
    def folder(self) -> Path:
        """The pod's own folder: its log, its process record, its volumes."""
        return pod_folder(self.settings.root, self.pod["metadata"]["uid"])

    def update(self, pod: Object) -> None:
        """Take the stored object as it is now; its end may have been ordered, or brought nearer."""
        known = self.pod["metadata"].get("deletionTimestamp")
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp") != known:
            self._order_end()

    def hurry(self) -> None:
        """End now, without what is left of the grace."""
        if self._end is not None:
            self._end.kill_at = self.settings.clock()

    def step(self) -> None:
        """One look at the engine and whatever follows from it."""
        now = self.settings.clock()
        if self._run is None:
            if is_terminating(self.pod):
                self._finish()
            elif now >= self._start_at:
                self._start(now)
            return
        code = self._exit_code(self._run)
        if code is not None:
            if processes.kill(self._run.session):
                self._ended(self._run, code, now)
        elif self._end is not None:
            self._press(self._run, self._end, now)
        else:
            self._probe(self._run, now)
        if logfile.trim(self.folder / "log") and self._run is not None:
            self._run.log_from = 0

    def status(self) -> dict[str, Any]:
        """The pod's status in Kubernetes' shape."""
        before: dict[str, Any] = self.pod["status"]
        now = datetime.now(UTC)
        spec = self.pod["spec"]["containers"][0]
        unready = "ContainersNotReady"
        return before | {
            "phase": "Running" if "running" in self._state or self._restarts else "Pending",
            "conditions": [
                condition(before, "PodScheduled", True, "", "", now),
                condition(before, "ContainersReady", self._ready, "", unready, now),
                condition(before, "Ready", self._ready, "", unready, now),
            ],
            "containerStatuses": [
                {
                    "name": spec["name"],
                    "image": spec["image"],
                    "ready": self._ready,
                    "started": self._started,
                    "restartCount": self._restarts,
                    "state": self._state,
                    "lastState": self._last,
                }
            ],
        }

    def _start(self, now: float) -> None:
        log = self.folder / "log"
        try:
            launch = self._launch()
            container.temporary(self.pod["metadata"]["uid"]).mkdir(mode=0o700, exist_ok=True)
            log_from = log.stat().st_size if log.exists() else 0
            child = processes.start(
                launch.argv, env=launch.env, cwd=self.folder, log=log, record=self.folder / "process"
            )
        except container.CannotStartError as error:
            self._wait(error.reason, str(error), now + _LOOK_AGAIN_S)
            return
        except OSError as error:
            self._wait("CreateContainerError", f"this machine refuses: {error}", now + _LOOK_AGAIN_S)
            return
        session = processes.identify(child.pid)
        if session is None:
            raise ProcessLookupError(f"a child that nobody waited for has no entry in /proc: {child.pid}")
        self._run = _Run(session, child, now, log_from, self._new_probes())
        self._state = {"running": {"startedAt": instant(datetime.now(UTC))}}
        self._started = self._ready = False

    def _launch(self) -> container.Launch:
        address, settings = self.pod["status"]["podIP"], self.settings
        for port in self._ports():
            if is_free(address, port):
                continue
            message = f"{address}:{port} is taken by another program of this machine"
            raise container.CannotStartError("CreateContainerError", message)
        return container.launch(self.pod, address=address, engines=settings.engines, folder=self.folder)

    def _wait(self, reason: str, message: str, start_at: float) -> None:
        self._state = {"waiting": {"reason": reason, "message": message}}
        self._started = self._ready = False
        self._start_at = start_at

    def _exit_code(self, run: _Run) -> int | None:
        """The leader's exit code, None while it runs; an adopted engine's code is not ours to learn."""
        if run.child is None:
            return None if processes.is_alive(run.session) else _KILLED_EXIT
        code = run.child.poll()
        return 128 - code if code is not None and code < 0 else code

    def _ended(self, run: _Run, code: int, now: float) -> None:
        """The whole session is gone: finish if that was ordered, else start again, each time later."""
        why = self._end.why if self._end else ""
        text = why or logfile.tail(self.folder / "log", _MESSAGE_LINES, run.log_from)
        terminated = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error" if run.child else "ContainerStatusUnknown",
            "startedAt": self._state.get("running", {}).get("startedAt", ""),
            "finishedAt": instant(datetime.now(UTC)),
        }
        if code and text:
            terminated["message"] = text[-_MESSAGE_CHARS:]
        (self.folder / "process").unlink(missing_ok=True)
        self._run = self._end = None
        self._started = self._ready = False
        if is_terminating(self.pod):
            self._state = {"terminated": terminated}
            self._finish()
            return
        if now - run.began_at >= _STEADY_S:
            self._failures = 0
        delay_s = 0.0
        if self._failures:
            delay_s = min(self.settings.backoff_s * 2 ** (self._failures - 1), self.settings.backoff_most_s)
        self._failures += 1
        self._restarts += 1
        self._last = {"terminated": terminated}
        name = self.pod["metadata"]["name"]
        self._wait("CrashLoopBackOff", f"back-off {delay_s:g}s restarting engine of {name}", now + delay_s)

    def _order_end(self) -> None:
        """Begin the end that the pod's deletionTimestamp orders, or bring a begun one nearer."""
        meta, now = self.pod["metadata"], self.settings.clock()
        left_s = datetime.fromisoformat(meta["deletionTimestamp"]).timestamp() - datetime.now(UTC).timestamp()
        grace_s = meta["deletionGracePeriodSeconds"]
        passed_s = max(0.0, grace_s - left_s)
        kill_at = now + min(grace_s, max(0.0, left_s))
        if self._end is None:
            self._end = _End(now + max(0.0, self._pre_stop_s() - passed_s), kill_at)
        self._end.kill_at = min(self._end.kill_at, kill_at)

    def _press(self, run: _Run, end: _End, now: float) -> None:
        if now >= end.kill_at:
            processes.kill(run.session)
        elif now >= end.term_at and not end.told:
            processes.terminate(run.session)
            end.told = True

    def _probe(self, run: _Run, now: float) -> None:
        if not self._started:
            verdict = self._verdict(run, "startupProbe", now)
            self._started = verdict is True
            self._restart_if(verdict, "the engine was not up within its startup budget", run, now)
            return
        ready = self._verdict(run, "readinessProbe", now)
        self._ready = self._ready if ready is None else ready
        self._restart_if(
            self._verdict(run, "livenessProbe", now), "the engine stopped answering its health check", run, now
        )

    def _verdict(self, run: _Run, kind: str, now: float) -> bool | None:
        """A probe that the manifest lacks is always passed."""
        return run.probes[kind].poll(now, self.settings.workers) if kind in run.probes else True

    def _restart_if(self, verdict: bool | None, why: str, run: _Run, now: float) -> None:
        if verdict is False:
            fault = next((probe.fault for probe in run.probes.values() if probe.fault), "")
            grace_s = self.pod["spec"].get("terminationGracePeriodSeconds", 30)
            self._end = _End(now + self._pre_stop_s(), now + grace_s, f"{why} ({fault})")
            self._ready = False

    def _new_probes(self) -> dict[str, Probe]:
        spec = self.pod["spec"]["containers"][0]
        address, now = self.pod["status"]["podIP"], self.settings.clock()
        kinds = ("startupProbe", "readinessProbe", "livenessProbe")
        return {kind: Probe(spec[kind], address, self._ports()[0], now) for kind in kinds if kind in spec}

    def _ports(self) -> list[int]:
        """A worker of a group has none."""
        return [int(port["containerPort"]) for port in self.pod["spec"]["containers"][0].get("ports", [])]

    def _pre_stop_s(self) -> float:
        lifecycle = self.pod["spec"]["containers"][0].get("lifecycle", {})
        return float(lifecycle.get("preStop", {}).get("sleep", {}).get("seconds", 0))

    def _finish(self) -> None:
        discard(self.settings.root, self.pod["metadata"]["uid"])
        self.finished = True


def pod_folder(root: Path, uid: str) -> Path:
    """Where a pod keeps its files."""
    return root / "pods" / uid


def discard(root: Path, uid: str) -> None:
    """Remove what a pod kept; its engine must have ended."""
    shutil.rmtree(container.temporary(uid), ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(pod_folder(root, uid))
