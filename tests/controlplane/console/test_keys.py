"""A key on its own page: limits, rotation with two live keys, and what is refused."""

from datetime import timedelta

import pytest

from kernel.clock import utcnow
from kernel.money import PICO
from tenants.models import ApiKey
from tests.controlplane.console.conftest import Person
from tests.controlplane.console.markup import Markup

FORM = {"name": "server", "scopes": "inference", "rpm": "60", "concurrency": "4"}


def made(person: Person, **changes: str) -> ApiKey:
    assert person.post("/keys", FORM | changes).status_code == 200
    return ApiKey.objects.filter(tenant=person.tenant).latest("created_at")


def test_a_new_key_has_the_limits_of_the_form(person):
    key = made(person, spend_cap="12.5", user_cap="1", tpm_uncached="1000", tpm_cached="2000", tpm_generated="300")
    assert (key.spend_cap_pico, key.user_cap_pico) == (12 * PICO + PICO // 2, PICO)
    assert (key.tpm_uncached, key.tpm_cached, key.tpm_generated) == (1000, 2000, 300)
    page = person.get(f"/keys/{key.public_id}").content.decode()
    assert Markup(page).faults == []
    assert 'value="12.5"' in page


@pytest.mark.parametrize(
    ("field", "value"), [("rpm", "0"), ("spend_cap", "-1"), ("spend_cap", "much"), ("tpm_cached", "9" * 12)]
)
def test_a_bad_limit_is_said_beside_its_field_and_leaves_no_key(person, field, value):
    answer = person.post("/keys", FORM | {field: value})
    assert answer.status_code == 422
    assert 'aria-invalid="true"' in answer.content.decode()
    assert Markup(answer.content.decode()).faults == []
    assert ApiKey.objects.filter(tenant=person.tenant).count() == 0


def test_limits_are_changed_on_the_keys_page(person):
    key = made(person)
    path = f"/keys/{key.public_id}"
    assert person.post(path, {"rpm": "5", "concurrency": "2", "spend_cap": "3"}).status_code == 302
    changed = ApiKey.objects.get(id=key.id)
    assert (changed.rpm, changed.concurrency, changed.spend_cap_pico) == (5, 2, 3 * PICO)
    assert changed.version > key.version
    refused = person.post(path, {"rpm": "5", "concurrency": "0"})
    assert refused.status_code == 422
    assert "concurrency is from 1" in refused.content.decode()


def test_rotating_gives_a_successor_and_the_old_key_a_day(person):
    key = made(person, spend_cap="3")
    answer = person.post(f"/keys/{key.public_id}/rotate")
    page = answer.content.decode()
    assert Markup(page).faults == []
    new = ApiKey.objects.filter(tenant=person.tenant).exclude(id=key.id).get()
    assert f"moorage_live_{new.public_id}_" in page
    assert (new.name, new.scopes, new.rpm, new.spend_cap_pico) == (key.name, key.scopes, key.rpm, 3 * PICO)
    old = ApiKey.objects.get(id=key.id)
    assert timedelta(hours=23) < old.expires_at - utcnow() <= timedelta(hours=24)
    assert old.revoked_at is None
    assert (
        "moorage_live_"
        not in person.get(f"/keys/{new.public_id}").content.decode().split("<main")[1].split("drawer")[0]
    )


def test_a_revoked_key_and_one_of_another_tenant_are_not_rotated(newcomer):
    person, stranger = newcomer(), newcomer()
    key = made(person)
    for path in (f"/keys/{key.public_id}", f"/keys/{key.public_id}/rotate"):
        assert stranger.post(path).status_code == 404
    person.post(f"/keys/{key.public_id}/revoke")
    assert person.post(f"/keys/{key.public_id}/rotate").status_code == 409
    assert ApiKey.objects.filter(tenant=person.tenant).count() == 1
