"""People at the console: signed-in browsers under the web role, each in a tenant of its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import polib
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client
from django.utils.translation import override

from controlplane.console import words
from inference import hints
from inference.models import Pool
from tenants.models import Role, Tenant, TenantKind
from tenants.services import member_add, tenant_create
from tests.conftest import as_role

IMAGE = "engine.moorage.local/vllm-cpu"


@dataclass(eq=False)
class Person:
    """A member with a browser; every request runs under the web role, as in production."""

    user: User
    tenant: Tenant
    browser: Client

    def get(self, path: str, **headers: str) -> HttpResponse:
        with as_role("web"):
            return self.browser.get(path, headers=headers)

    def post(self, path: str, data: dict[str, object] | None = None) -> HttpResponse:
        with as_role("web"):
            return self.browser.post(path, data or {})


@pytest.fixture(autouse=True, scope="session")
def translations() -> None:
    """The catalogues, compiled as `make` compiles them."""
    for source in (Path(words.__file__).parent / "locale").rglob("*.po"):
        polib.pofile(str(source)).save_as_mofile(str(source.with_suffix(".mo")))


@pytest.fixture(autouse=True)
def in_english() -> Iterator[None]:
    """The language that a request of another test chose is not this one's."""
    with override("en"):
        yield


@pytest.fixture(autouse=True)
def static_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files are found in the apps; the collected folder is an empty one."""
    monkeypatch.setattr(settings, "STATIC_ROOT", str(tmp_path))


@pytest.fixture(autouse=True)
def no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hints go nowhere: the pages do not depend on them."""
    monkeypatch.setattr(hints, "current_app", SimpleNamespace(send_task=lambda *_args, **_options: None))


@pytest.fixture
def newcomer(database: None) -> Callable[..., Person]:
    """Makes a person in a new tenant, signed in."""

    def make(name: str = "Acme", *, kind: str = TenantKind.CUSTOMER, role: str = Role.OWNER) -> Person:
        user = User.objects.create_user(f"user-{uuid4().hex}", password="harbour-master")
        tenant = tenant_create(name=name, currency="USD", kind=kind)
        member_add(tenant_id=tenant.id, user=user, role=role)
        browser = Client()
        browser.force_login(user)
        return Person(user, tenant, browser)

    return make


@pytest.fixture
def person(newcomer: Callable[..., Person]) -> Person:
    """A signed-in owner of a tenant."""
    return newcomer()


@pytest.fixture
def operator(newcomer: Callable[..., Person]) -> Person:
    """A signed-in owner of the operator's tenant."""
    return newcomer("Operator", kind=TenantKind.OPERATOR)


@pytest.fixture
def pool(database: None) -> Pool:
    """A CPU pool of this region that holds the test model."""
    return Pool.objects.create(
        region=settings.REGION,
        name=f"pool-{uuid4().hex[:8]}",
        cluster="none",
        accelerator="cpu",
        capacity=6,
        arch="amd64",
        engine_images={IMAGE: {"image": f"{IMAGE}:0.32.0", "version": "0.32.0"}},
        weights_root="/weights",
        releases=["tiny-deepseek"],
    )


@pytest.fixture
def prices(pool: Pool) -> None:
    """The test model is on sale: shared, reserved and dedicated."""
    from tests.controlplane.console.purse import publish_prices

    publish_prices()
