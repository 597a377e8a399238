"""What the tests of this room share: specs, a node agent as a process of its own, waiting."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from uuid import UUID

from k8s.cluster import Ref
from k8s.desired import PoolBinding, RegionBinding, TenantSpec, WorkloadSpec, tenant_objects
from k8s.local.cluster import AGENT_LOCK, LocalCluster
from k8s.observe import observe

TENANT = UUID("0193a000-0000-7000-8000-000000000001")
ENDPOINT = UUID("0193a000-0000-7000-8000-000000000002")
DEPLOYMENT = UUID("0193a000-0000-7000-8000-000000000003")
SLOT = "moorage.dev/cpu-engine"
ROOT = Path(__file__).parents[2]

POOL = PoolBinding(name="cpu-local", arch="amd64" if os.uname().machine == "x86_64" else "arm64", resource_name=SLOT)
TENANT_OBJECTS = tenant_objects(TenantSpec(tenant_id=TENANT, pods=4), RegionBinding(name="local"))


def spec(*, fake=None, **changes):
    """A workload of the fake engine; `fake` is what it does wrong."""
    fields = {
        "tenant_id": TENANT,
        "endpoint_id": ENDPOINT,
        "deployment_id": DEPLOYMENT,
        "generation": 1,
        "replicas": 1,
        "image": "engine.moorage.local/fake:1",
        "command": ("serve",),
        "args": ("/models/tiny",),
        "env": {"FAKE": json.dumps(fake or {})},
        "cpu_millis": 100,
        "memory_bytes": 64 << 20,
        "accelerator_count": 1,
        "startup_budget_s": 60,
        "startup_period_s": 1,
        "shutdown_timeout_s": 2,
        "pre_stop_s": 0,
    }
    return WorkloadSpec(**(fields | changes))


def until(truth, timeout_s=20.0):
    """The first true value of `truth()`."""
    end_at = time.monotonic() + timeout_s
    while time.monotonic() < end_at:
        if value := truth():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s; last seen: {value!r}")


def ask(address, path="/"):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=2) as answer:
        return json.load(answer)


def is_gone(pid):
    """No such process, or one that only waits for its parent to take notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Place:
    """One ROOT with its cluster and, between `start` and an end, its agent."""

    def __init__(self, root, engines):
        self.root, self.engines = root, engines
        self.cluster = LocalCluster(root)
        self.agent = None

    def start(self, *flags):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/platform", "MOORAGE_SECRET_KEY": "not for engines"}
        command = [sys.executable, "-m", "k8s.local.agent", "--root", self.root, "--engines", self.engines]
        self.agent = subprocess.Popen([*command, "--backoff-s", "0.5", *flags], env=environment)
        until(self._holds_root)
        return self

    def _holds_root(self):
        assert self.agent.poll() is None, "the agent did not start"
        lock = self.root / AGENT_LOCK
        return lock.exists() and lock.read_text() == f"pid {self.agent.pid}\n" and self.cluster.list().nodes

    def signal(self, number):
        self.agent.send_signal(number)

    def wait(self, timeout_s=20):
        return self.agent.wait(timeout_s)

    def close(self):
        """Leave no engine behind, whatever the test did to the agent."""
        if self.agent is None:
            return
        if self.agent.poll() is None:
            self.agent.kill()
            self.agent.wait()
        self.start()
        for _ in range(2):
            self.signal(signal.SIGINT)
            time.sleep(0.3)
        self.wait()

    def seen(self, deployment_id=DEPLOYMENT):
        return observe(self.cluster.list()).get(deployment_id)

    def pods(self, deployment_id=DEPLOYMENT):
        observed = self.seen(deployment_id)
        return observed.pods if observed else ()

    def ready(self, count=1, deployment_id=DEPLOYMENT, timeout_s=20.0):
        """Wait until `count` pods are ready and nothing else is under way; the pods."""

        def settled():
            observed = self.seen(deployment_id)
            return observed and observed.settled and observed.ready == count

        until(settled, timeout_s)
        return self.pods(deployment_id)

    def container(self):
        pod = self.cluster.list().pods[0]
        return next(iter(pod["status"].get("containerStatuses", [])), {})

    def log(self, lines=50):
        return self.cluster.log(Ref.of(self.cluster.list().pods[0]), lines)
