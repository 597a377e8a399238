"""Names that pose as others, hide characters or forge lines."""

import unicodedata

import pytest

from inference.refusals import name_of
from kernel.problems import Problem
from tenants.models import AuditLog
from tenants.services import tenant_create

FORGED = {
    "zero width": "Har\u200bbour",
    "joiner": "Har\u200dbour",
    "byte order mark": "\ufeffHarbour",
    "right to left": "Harbour\u202etxt",
    "isolate": "\u2066Harbour",
    "escape": "Harbour\x1b[2K",
    "null": "Harbour\0",
    "private": "Harbour\ue000",
}
TWINS = {
    "cyrillic a": "H\u0430rbour",
    "greek omicron": "Harb\u03bfur",
    "cherokee": "\u13a7arbour",
}


@pytest.mark.parametrize("name", FORGED.values(), ids=FORGED)
def test_fault_41_a_name_with_what_nobody_sees_is_refused(database: None, name: str) -> None:
    with pytest.raises(Problem, match="printable") as refusal:
        tenant_create(name=name, currency="USD")
    assert refusal.value.param == "name"
    with pytest.raises(Problem, match="a-z"):
        name_of(name.lower())


@pytest.mark.parametrize("name", TWINS.values(), ids=TWINS)
def test_fault_41_a_name_that_mixes_alphabets_that_look_alike_is_refused(database: None, name: str) -> None:
    with pytest.raises(Problem, match="one alphabet") as refusal:
        tenant_create(name=name, currency="USD")
    assert refusal.value.param == "name"
    with pytest.raises(Problem, match="a-z"):
        name_of(name.lower())


@pytest.mark.parametrize("name", ["Hafen Zürich", "Порт", "Λιμάνι", "海港 Harbour", "ميناء 7", "Harbour’s №"])
def test_fault_41_an_honest_name_is_kept_in_one_spelling_and_in_the_audit(database: None, name: str) -> None:
    tenant = tenant_create(name=unicodedata.normalize("NFD", f"  {name} "), currency="USD")
    assert tenant.name == unicodedata.normalize("NFKC", name)
    (row,) = AuditLog.objects.filter(tenant_id=tenant.id, action="tenant.created")
    assert row.detail == {"name": tenant.name}


def test_fault_41_a_name_begins_no_line_of_its_own(database: None) -> None:
    for end in ("\n", "\r\n", "\u2028", "\u0085"):
        assert tenant_create(name=f"Harbour{end}level=INFO forged", currency="USD").name == "Harbour level=INFO forged"


def test_fault_41_twins_of_width_and_style_are_one_name(database: None) -> None:
    for twin in ("Ｈarbour", "𝐇arbour", "ℌarbour", "Harbour"):  # noqa: RUF001  the twins are the test
        assert tenant_create(name=twin, currency="USD").name == "Harbour"
    assert name_of("ｈarbour") == name_of("𝐡arbour") == "harbour"  # noqa: RUF001
