"""The node agent: turns Deployments into pods and pods into processes of this machine.

    python -m k8s.local.agent --root ROOT --engines ENGINES

SIGTERM leaves, and the engines run on until the next start adopts them. SIGINT ends every pod with its grace
and leaves; a second SIGINT does not wait for the grace.
"""

import argparse
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

from k8s.cluster import Object, Ref
from k8s.local import node, processes, rollout
from k8s.local.cluster import AGENT_LOCK
from k8s.local.runner import Runner, Settings, discard
from k8s.local.store import BrokenFileError, Store, Transaction

log = logging.getLogger("moorage.agent")

_TICK_S = 0.1
_SYNC_S = 1.0
_BEAT_S = 5.0
_COMPLAIN_S = 30.0
_PROBE_THREADS = 16
_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_FAULTS = (OSError, BrokenFileError)


class AlreadyRunningError(Exception):
    """Another agent works on this ROOT; the message names its pid."""


class Agent:
    """One machine's pods. `tick` does whatever is due now; nothing in it waits for an engine."""

    def __init__(self, store: Store, settings: Settings, machine: Object) -> None:
        self._store, self._settings = store, settings
        self._machine = machine
        self._runners: dict[str, Runner] = {}
        self._seen = -1
        self._sync_at = self._beat_at = self._complain_at = 0.0
        self._stopping = False

    def begin(self) -> None:
        """Take over what an earlier agent left; end engines whose pods are gone meanwhile."""
        items, _ = self._store.snapshot()
        pods = {item["metadata"]["uid"]: item for item in items.values() if item["kind"] == "Pod"}
        for record in self._settings.root.glob("pods/*/process"):
            session = processes.recorded(record)
            while record.parent.name not in pods and session and not processes.kill(session):
                time.sleep(_TICK_S)
        for folder in self._settings.root.glob("pods/*"):
            if folder.name not in pods:
                discard(self._settings.root, folder.name)
        for uid, pod in pods.items():
            if "nodeName" in pod["spec"]:
                self._runners[uid] = Runner(pod, self._settings)

    def stop(self) -> None:
        """Order the end of every pod; a second call makes it immediate."""
        if self._stopping:
            for runner in self._runners.values():
                runner.hurry()
        self._stopping = True
        now = datetime.now(UTC)
        for runner in self._runners.values():
            runner.update(rollout.ended(runner.pod, grace_s=None, now=now))

    @property
    def stopped(self) -> bool:
        """Whether a stop was ordered and no engine is left."""
        return self._stopping and all(runner.finished for runner in self._runners.values())

    def tick(self) -> None:
        """Step every engine, then bring the files up to date if anything may have changed."""
        now = self._settings.clock()
        for runner in self._runners.values():
            try:
                runner.step()
            except OSError as error:
                self._complain(runner.pod["metadata"]["name"], error)
        try:
            if now >= self._beat_at:
                os.utime(self._settings.root / AGENT_LOCK)
                self._beat_at = now + _BEAT_S
            if now >= self._sync_at or self._seen != self._store.version() or self._has_news():
                self._sync_at = now + _SYNC_S
                with self._store.transaction() as turn:
                    self._sync(turn)
                self._seen = self._store.version()
        except _FAULTS as error:
            self._sync_at = now + _SYNC_S
            self._complain("the cluster's files", error)

    def _has_news(self) -> bool:
        return any(runner.finished or runner.status() != runner.pod["status"] for runner in self._runners.values())

    def _complain(self, about: str, error: Exception) -> None:
        """Once in a while: a full disk would otherwise be filled further by its own complaint."""
        if self._settings.clock() >= self._complain_at:
            self._complain_at = self._settings.clock() + _COMPLAIN_S
            hint = " (free some space; engines run on)" if "No space" in str(error) else ""
            log.error("%s: %s%s", about, error, hint)

    def _sync(self, turn: Transaction) -> None:
        """One consistent pass over all objects, under the store's lock."""
        self._put_node(turn)
        for uid, runner in list(self._runners.items()):
            if runner.finished:
                turn.drop(Ref.of(runner.pod))
                del self._runners[uid]
        for pod in _of_kind(turn, "Pod"):
            self._follow(turn, pod)
        if self._stopping:
            return
        for deployment in _of_kind(turn, "Deployment"):
            self._roll(turn, deployment)
        self._end_orphans(turn)
        for pod in sorted(_of_kind(turn, "Pod"), key=lambda item: item["metadata"]["creationTimestamp"]):
            self._place(turn, pod)
        for deployment in _of_kind(turn, "Deployment"):
            pods = _pods_of(turn, deployment)
            status = rollout.deployment_status(deployment, pods, datetime.now(UTC))
            _put_status(turn, deployment, status)

    def _put_node(self, turn: Transaction) -> None:
        stored = turn.items.get(Ref.of(self._machine), {"metadata": {}})
        version = {"resourceVersion": stored["metadata"].get("resourceVersion")}
        if stored != {**self._machine, "metadata": self._machine["metadata"] | version}:
            turn.put(self._machine)

    def _follow(self, turn: Transaction, pod: Object) -> None:
        """Join a stored pod and its runner: orders go down, facts go up."""
        uid = pod["metadata"]["uid"]
        if "nodeName" not in pod["spec"]:
            if rollout.is_terminating(pod):
                turn.drop(Ref.of(pod))
            return
        runner = self._runners.get(uid)
        if runner is None:
            runner = self._runners[uid] = Runner(pod, self._settings)
        if self._stopping:
            pod = rollout.ended(pod, grace_s=None, now=datetime.now(UTC))
        runner.update(pod)
        fresh = {**pod, "status": runner.status()}
        if fresh != turn.items[Ref.of(pod)]:
            turn.put(fresh)
        runner.update(turn.items[Ref.of(pod)])

    def _roll(self, turn: Transaction, deployment: Object) -> None:
        now = datetime.now(UTC)
        step = rollout.plan(deployment, _pods_of(turn, deployment), now)
        for pod in step.end:
            turn.put(rollout.ended(pod, grace_s=None, now=now))
        for _ in range(step.create):
            suffix = "".join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(5))
            turn.put(rollout.new_pod(deployment, uid=str(uuid4()), suffix=suffix, now=now))

    def _end_orphans(self, turn: Transaction) -> None:
        owners = {item["metadata"]["uid"] for item in _of_kind(turn, "Deployment")}
        for pod in _of_kind(turn, "Pod"):
            owner = pod["metadata"]["ownerReferences"][0]["uid"]
            if owner not in owners and not rollout.is_terminating(pod):
                turn.put(rollout.ended(pod, grace_s=None, now=datetime.now(UTC)))

    def _place(self, turn: Transaction, pod: Object) -> None:
        """Bind a waiting pod to this node and give it an address, or say what is short."""
        if "nodeName" in pod["spec"] or rollout.is_terminating(pod):
            return
        placed = [other for other in _of_kind(turn, "Pod") if "nodeName" in other["spec"]]
        taken = {other["status"]["podIP"] for other in placed}
        port = pod["spec"]["containers"][0]["ports"][0]["containerPort"]
        misfit, address = node.misfit(pod, self._machine, placed), None
        if misfit is None:
            candidates = node.addresses(self._settings.root, pod["metadata"]["uid"])
            address = next((ip for ip in candidates if ip not in taken and node.is_free(ip, port)), None)
            if address is None:
                misfit = f"port {port} is taken on every loopback address: another program listens on 0.0.0.0:{port}"
        now = datetime.now(UTC)
        scheduled = rollout.condition(
            pod["status"], "PodScheduled", misfit is None, "", "Unschedulable", now, misfit or ""
        )
        status: dict[str, Any] = {"phase": "Pending", "conditions": [scheduled]}
        if address is None:
            _put_status(turn, pod, status)
            return
        status |= {"podIP": address, "hostIP": "127.0.0.1", "startTime": rollout.instant(now)}
        bound = {**pod, "spec": {**pod["spec"], "nodeName": node.NODE_NAME}, "status": status}
        turn.put(bound)
        self._follow(turn, turn.items[Ref.of(bound)])


def _of_kind(turn: Transaction, kind: str) -> list[Object]:
    """Objects of a kind by name, so that equal files lead to equal steps."""
    return [turn.items[ref] for ref in sorted(turn.items) if ref.kind == kind]


def _pods_of(turn: Transaction, deployment: Object) -> list[Object]:
    uid = deployment["metadata"]["uid"]
    return [pod for pod in _of_kind(turn, "Pod") if pod["metadata"]["ownerReferences"][0]["uid"] == uid]


def _put_status(turn: Transaction, item: Object, status: dict[str, Any]) -> None:
    if item.get("status") != status:
        turn.put({**item, "status": status})


@contextlib.contextmanager
def only_agent(root: Path) -> Iterator[None]:
    """Hold ROOT for this process; the kernel lets go of it when the process ends, however it ends."""
    with (root / AGENT_LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown pid"
            raise AlreadyRunningError(f"another agent ({holder}) runs on {root}: stop it first") from error
        file.truncate(0)
        file.write(f"pid {os.getpid()}\n")
        file.flush()
        yield


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _amount(text: str) -> tuple[str, int]:
    name, value = _pair(text)
    if not value.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COUNT")
    return name, int(value)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m k8s.local.agent", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="where the objects and pods are kept")
    parser.add_argument("--engines", type=Path, required=True, help="holds NAME-TAG/bin of each engine image")
    parser.add_argument(
        "--resource",
        type=_amount,
        action="append",
        help="extended resource of the node as NAME=COUNT (default moorage.dev/cpu-engine=2)",
    )
    parser.add_argument("--label", type=_pair, action="append", default=[], help="node label as NAME=VALUE")
    parser.add_argument("--backoff-s", type=float, default=10.0, help="wait before a second restart; it doubles")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run until a signal says otherwise. 0 after one, 1 where another agent holds ROOT."""
    options = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s agent %(levelname)s %(message)s")
    signals = _noted(signal.SIGTERM, signal.SIGINT)
    options.root.mkdir(parents=True, exist_ok=True)
    try:
        with only_agent(options.root), ThreadPoolExecutor(_PROBE_THREADS) as workers:
            settings = Settings(
                root=options.root,
                engines=options.engines,
                workers=workers,
                clock=time.monotonic,
                backoff_s=options.backoff_s,
            )
            resources = dict(options.resource or [("moorage.dev/cpu-engine", 2)])
            machine = node.node_object(resources, dict(options.label))
            _run(Agent(Store(options.root), settings, machine), signals)
    except AlreadyRunningError as error:
        log.error("%s", error)  # noqa: TRY400  the sentence is for a person; a traceback says no more
        return 1
    return 0


def _noted(*numbers: int) -> list[int]:
    """A list that these signals are appended to from now on, instead of what they do by default."""
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    for number in numbers:
        signal.signal(number, note)
    return arrived


def _run(agent: Agent, signals: list[int]) -> None:
    agent.begin()
    log.info("ready")
    while not agent.stopped:
        agent.tick()
        time.sleep(_TICK_S)
        if signal.SIGTERM in signals:
            log.info("leaving; engines run on")
            return
        while signals:
            signals.pop()
            log.info("ending every pod")
            agent.stop()
    agent.tick()
    log.info("every pod has ended")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
