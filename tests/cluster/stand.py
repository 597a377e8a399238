"""A Kubernetes for a person to try Moorage on, without containers; it lives until Ctrl-C, and nothing of it stays."""

import logging
import shutil
import signal
from pathlib import Path

from tests.cluster.boot import ControlPlane, build
from tests.cluster.nodes import Nodes, machine
from tests.cluster.site import prepare

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".moorage" / "kubernetes"
ENGINES = ROOT / ".engines"
POOLS = {
    "nvidia": {"nvidia.com/gpu": 8},
    "ascend": {"huawei.com/Ascend910": 8},
    "mthreads": {"mthreads.com/gpu": 8},
    "enflame": {"enflame.com/gcu": 8},
    "cpu": {"moorage.dev/cpu-engine": 2},
}
SILENT_S = 40

log = logging.getLogger("cluster")


def main():
    """Boot, add two nodes to each pool, say where the kubeconfigs are, wait for SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    program = build()
    shutil.rmtree(FOLDER, ignore_errors=True)
    with ControlPlane(program, FOLDER, node_grace_s=SILENT_S) as plane:
        prepare(plane)
        kubectl = FOLDER / "kubectl"
        kubectl.write_text(f'#!/bin/sh\nexec {program} kubectl --kubeconfig={FOLDER}/admin.kubeconfig "$@"\n')
        kubectl.chmod(0o755)
        nodes = Nodes(plane.kubeconfig("nodes"), FOLDER / "nodes", ENGINES, (plane.certificate, plane.key))
        for pool, resources in POOLS.items():
            labels = {"moorage.dev/pool": pool}
            nodes.add(*(machine(f"{pool}-{number}", labels=labels, resources=resources) for number in range(2)))
        log.info("Kubernetes is up, with two nodes in each of the pools %s.", ", ".join(POOLS))
        log.info("  for Moorage: %s", FOLDER / "app.kubeconfig")
        log.info("  for you:     %s get nodes", kubectl)
        log.info("Ctrl-C ends it.")
        signal.sigwait(signals)
        nodes.close()


if __name__ == "__main__":
    main()
