"""Values that several tests of the inference room build on."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import yaml

import inference
from inference.core.catalogue import Catalogue, parse
from inference.core.placement import EngineImage, PoolFacts
from k8s.observe import ObservedPod

FOLDER = Path(inference.__file__).parent / "catalogue"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
CPU_IMAGE = "engine.moorage.local/vllm-cpu"
CUDA_IMAGE = "docker.io/vllm/vllm-openai"


def documents() -> list[dict]:
    """The catalogue's files as they lie in the repository."""
    return [yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("models", "recipes", "accelerators")]


def known() -> Catalogue:
    """The catalogue as it lies in the repository."""
    return parse(*documents())


def pool(name: str = "h200", **changes) -> PoolFacts:
    """A pool of 16 H200 in region here that runs anything."""
    facts = {
        "name": name,
        "region": "here",
        "accelerator": "nvidia-h200-141",
        "capacity": 16,
        "free": 16,
        "images": {CUDA_IMAGE: EngineImage(f"{CUDA_IMAGE}:v0.32.0", "0.32.0")},
        "releases": None,
        "nodes": (8, 8),
    }
    return PoolFacts(**{**facts, **changes})


def pod(uid: UUID | str, *, ready: bool = True, **changes) -> ObservedPod:
    """A pod that runs, or starts."""
    facts = {
        "uid": str(uid),
        "name": f"pod-{uid}",
        "address": "127.1.2.3:8000",
        "ready": ready,
        "phase": "Running",
        "reason": "Running" if ready else "Starting",
        "message": "",
        "started_at": NOW,
        "restarts": 0,
        "spec_hash": "hash",
        "node": "node-1",
        "terminating": False,
    }
    return ObservedPod(**{**facts, **changes})
