"""The manifests that golden files hold. `python -m tests.k8s.golden_cases` writes them anew; review the diff."""

from pathlib import Path
from uuid import UUID

import yaml

from k8s.desired import PoolBinding, RegionBinding, TenantSpec, WorkloadSpec, deployment_objects, tenant_objects
from k8s.engine_pod import LEADER_ADDRESS, RANK

FOLDER = Path(__file__).parent / "golden"
TENANT = UUID("0193a000-0000-7000-8000-000000000001")
_GIB = 1 << 30
_TAINT = {"operator": "Exists", "effect": "NoSchedule"}


def workload(**changes):
    fields = {
        "tenant_id": TENANT,
        "endpoint_id": UUID("0193a000-0000-7000-8000-000000000002"),
        "deployment_id": UUID("0193a000-0000-7000-8000-000000000003"),
        "generation": 4,
        "replicas": 1,
        "image": "registry.example/vllm@sha256:" + "0" * 64,
        "args": ("/weights/DeepSeek-R1", "--served-model-name", "ep_x", "--tensor-parallel-size", "8"),
        "env": {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        "cpu_millis": 16000,
        "memory_bytes": 200 * _GIB,
        "shm_bytes": 16 * _GIB,
        "accelerator_count": 8,
        "startup_budget_s": 3600,
        "startup_period_s": 15,
        "shutdown_timeout_s": 300,
        "pre_stop_s": 10,
    }
    return WorkloadSpec(**(fields | changes))


WEIGHTS = {"persistentVolumeClaim": {"claimName": "weights", "readOnly": True}}
POOLS = {
    "nvidia": PoolBinding(
        name="h200",
        arch="amd64",
        resource_name="nvidia.com/gpu",
        runtime_class="nvidia",
        node_selector={"nvidia.com/gpu.product": "NVIDIA-H200"},
        tolerations=({"key": "nvidia.com/gpu", **_TAINT},),
        weights_volume=WEIGHTS,
    ),
    "ascend": PoolBinding(
        name="ascend-910b3",
        arch="arm64",
        resource_name="huawei.com/Ascend910",
        runtime_class="ascend",
        node_selector={"accelerator": "huawei-Ascend910", "node.kubernetes.io/npu.chip.name": "910B3"},
        weights_volume=WEIGHTS,
    ),
    "mthreads": PoolBinding(
        name="mtt-s5000",
        arch="amd64",
        resource_name="mthreads.com/gpu",
        runtime_class="mthreads",
        node_selector={"moorage.dev/pool": "mtt-s5000"},
        weights_volume=WEIGHTS,
    ),
    "enflame": PoolBinding(
        name="enflame-s60",
        arch="amd64",
        resource_name="enflame.com/gcu",
        node_selector={"moorage.dev/pool": "enflame-s60"},
        weights_volume=WEIGHTS,
        lost_after_s=30,
    ),
    "cpu-local": PoolBinding(name="cpu-local", arch="amd64", resource_name="moorage.dev/cpu-engine"),
}
WORKLOADS = {
    "nvidia": workload(replicas=2, surge=True),
    "ascend": workload(env={"HCCL_IF_IP": "$(POD_IP)"}),
    "mthreads": workload(replicas=3, shm_bytes=80 * _GIB),
    "enflame": workload(drains_itself=False, shutdown_timeout_s=60),
    "two-nodes": workload(
        replicas=2,
        args=(
            *("/weights/DeepSeek-R1", "--tensor-parallel-size", "8", "--pipeline-parallel-size", "2"),
            *("--nnodes", "2", "--node-rank", RANK, "--master-addr", LEADER_ADDRESS),
        ),
        nodes=2,
        worker_args=("--headless",),
    ),
    "cpu-local": workload(
        image="engine.moorage.local/vllm-cpu:0.32.0",
        args=("/models/tiny-deepseek", "--served-model-name", "ep_x", "--dtype", "bfloat16", "--enforce-eager"),
        cpu_millis=500,
        memory_bytes=3 * _GIB,
        shm_bytes=64 << 20,
        accelerator_count=1,
        startup_budget_s=300,
        startup_period_s=2,
        shutdown_timeout_s=30,
        pre_stop_s=1,
    ),
}


def documents():
    """Every golden file's text by its name."""
    region = RegionBinding(name="cn-north", weights_cidr="10.9.0.0/24")
    tenant = TenantSpec(tenant_id=TENANT, pods=20, accelerators={"nvidia.com/gpu": 16, "huawei.com/Ascend910": 8})
    manifests = {name: deployment_objects(spec, POOLS.get(name, POOLS["nvidia"])) for name, spec in WORKLOADS.items()}
    manifests["tenant"] = tenant_objects(tenant, region)
    return {f"{name}.yaml": yaml.safe_dump_all(items, sort_keys=True, width=110) for name, items in manifests.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file_name, text in documents().items():
        (FOLDER / file_name).write_text(text)
