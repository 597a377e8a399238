"""A Kubernetes for a person to try Moorage on, without containers; it lives until Ctrl-C, and nothing of it stays."""

import logging
import shutil
import signal
from pathlib import Path

import yaml

from tests.cluster import groups
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
# The pool whose engines really run; the others are there to see where pods land.
CPU_POOL = {
    "name": "cpu",
    "accelerator": "cpu",
    "resource_name": "moorage.dev/cpu-engine",
    "engine_images": {
        "engine.moorage.local/vllm-cpu": {"image": "engine.moorage.local/vllm-cpu:0.32.0", "version": "0.32.0"}
    },
    "weights_root": str(ROOT / ".moorage" / "weights"),
    "releases": ["tiny-deepseek"],
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
        groups.install(plane)
        kubectl = FOLDER / "kubectl"
        kubectl.write_text(f'#!/bin/sh\nexec {program} kubectl --kubeconfig={FOLDER}/admin.kubeconfig "$@"\n')
        kubectl.chmod(0o755)
        nodes = Nodes(plane.kubeconfig("nodes"), FOLDER / "nodes", ENGINES, (plane.certificate, plane.key))
        for pool, resources in POOLS.items():
            labels = {"moorage.dev/pool": pool}
            nodes.add(*(machine(f"{pool}-{number}", labels=labels, resources=resources) for number in range(2)))
        log.info("Kubernetes is up, with two nodes in each of the pools %s.", ", ".join(POOLS))
        (FOLDER / "pools.yaml").write_text(yaml.safe_dump([CPU_POOL]))
        log.info("  for Moorage: %s and pools.yaml beside it", FOLDER / "app.kubeconfig")
        log.info("  for you:     %s get nodes", kubectl)
        log.info("Ctrl-C ends it.")
        signal.sigwait(signals)
        nodes.close()


if __name__ == "__main__":
    main()
