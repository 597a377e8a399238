"""Every route under odd input: whatever is sent, the answer is a refusal with a sentence and never a fault."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from kernel.ids import new_id
from tenants.models import Role, Scope, TenantKind
from tenants.services import api_key_create, member_add, tenant_create
from tests.conftest import as_role

PROBLEM = "application/problem+json"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
FIELDS = ("name", "note", "role", "replicas", "rpm", "limit", "amount", "endpoint", "endpoint_id", "start", "tenant")
ODD_TEXTS = ("%00", "%ED%A0%80", "%FF%FE", "9" * 400, "-1", "1e400", "%F0%9F%9A%A2", "..%2F..", "'; DROP TABLE tenant")
ODD_PATHS = ("%00", "%ED%A0%80", "%FF", "9" * 300, "%F0%9F%9A%A2", "ep_" + "z" * 26, "x" * 3000)
ODD_BODIES = (
    (b"", JSON),
    (b"null", JSON),
    (b"[" * 50_000, JSON),
    (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, JSON),
    (json.dumps(dict.fromkeys(FIELDS, "a\0b")).encode(), JSON),
    (json.dumps(dict.fromkeys(FIELDS, "\ud800")).encode(), JSON),
    (json.dumps(dict.fromkeys(FIELDS, 10**400)).encode(), JSON),
    (b'{"name":' + b"9" * 5_000 + b"}", JSON),
    (json.dumps({name: {"a": [None]} for name in FIELDS}).encode(), JSON),
    (b'{"name": NaN, "replicas": Infinity}', JSON),
    (b"\xff\xfe\x00", JSON),
    (b"name=x", "text/plain"),
    (b"--x", "multipart/form-data; boundary=x"),
    (b"--x", "multipart/form-data"),
    ("&".join(f"{name}=%00" for name in FIELDS).encode(), FORM),
    ("&".join(f"{name}=%ED%A0%80" for name in FIELDS).encode(), FORM),
    ("&".join(f"{name}={'9' * 400}" for name in FIELDS).encode(), FORM),
    (b"&".join(b"a%d=1" % number for number in range(1_100)), FORM),
    (b"name=" + b"a" * 2_700_000, FORM),
)


def routes(resolver: URLResolver, prefix: str = "/") -> Iterator[tuple[str, URLPattern]]:
    for entry in resolver.url_patterns:
        if isinstance(entry, URLResolver):
            yield from routes(entry, prefix + str(entry.pattern))
        else:
            yield prefix + str(entry.pattern), entry


PATHS = sorted({path for path, _entry in routes(get_resolver())})


def filled(path: str) -> Iterator[str]:
    """The route's path with each odd text in the places of its parameters."""
    before, bracket, rest = path.partition("<")
    if not bracket:
        yield path
        return
    _parameter, _, after = rest.partition(">")
    for odd in (*ODD_PATHS, str(uuid4()), "1"):
        yield before + odd + after


@pytest.fixture
def callers(database: None) -> tuple[Client, dict[str, str]]:
    """A browser of an owner of the operator's tenant, who may call everything, and the headers of a key."""
    tenant = tenant_create(name="Odd", currency="USD", kind=TenantKind.OPERATOR)
    user = User.objects.create_user(f"user-{uuid4().hex}", password="harbour-master")
    member_add(tenant_id=tenant.id, user=user, role=Role.OWNER)
    browser = Client()
    browser.force_login(user)
    _, key = api_key_create(tenant_id=tenant.id, name="odd", actor="t", scopes=list(Scope))
    return browser, {"Authorization": f"Bearer {key}"}


def check(path: str, answer: Any) -> None:
    assert answer.status_code < 500, (path, answer.status_code)
    if answer.status_code >= 400 and path.startswith("/api/"):
        assert answer["Content-Type"] == PROBLEM, path
        assert answer.json()["detail"], path
    elif answer.status_code == 400:
        assert len(answer.content) > 40, path


@pytest.mark.parametrize("path", PATHS)
def test_no_odd_input_is_a_fault(callers: tuple[Client, dict[str, str]], path: str) -> None:
    browser, key = callers
    query = "&".join(f"{name}={{}}" for name in FIELDS)
    first, *others = filled(path)
    asked = [(first, odd) for odd in ODD_TEXTS] + [(place, ODD_TEXTS[0]) for place in others]
    for place, odd in asked:
        with as_role("web"):
            check(place, browser.generic("GET", f"{place}?{query.format(*[odd] * len(FIELDS))}", headers=key))
    for body, kind in ODD_BODIES:
        for method in ("POST", "PATCH", "DELETE"):
            if path == "/sign-out" and method == "POST":
                continue
            headers = {**key, "Idempotency-Key": str(new_id())}
            with as_role("web"):
                check(first, browser.generic(method, first, data=body, content_type=kind, headers=headers))


@pytest.mark.parametrize("path", ["/api/", "/api/v1/", "/api/v1/nothing", "/api/v2/endpoints", "/api/v1/endpoints/"])
def test_an_unknown_address_of_the_api_is_a_problem_and_not_a_page(database: None, path: str) -> None:
    with as_role("web"):
        answer = Client().get(path)
    assert (answer.status_code, answer["Content-Type"]) == (404, PROBLEM)
    assert answer.json()["code"] == "not_found"


def test_a_nul_in_a_query_is_400_with_a_sentence(callers: tuple[Client, dict[str, str]]) -> None:
    browser, key = callers
    with as_role("web"):
        page = browser.get("/usage?endpoint=%00")
        api = Client().get("/api/v1/usage?endpoint_id=%00", headers=key)
    assert page.status_code == api.status_code == 400
    assert "cannot be read" in page.content.decode()
    assert api.json()["code"] == "invalid_parameter"


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"messages":' * 20_000, b'{"model": "\\ud800"}', b'{"model": NaN}'])
def test_the_playground_refuses_a_body_that_it_could_not_pass_on(
    callers: tuple[Client, dict[str, str]], body: bytes
) -> None:
    with as_role("web"):
        answer = callers[0].post("/playground/stream", body, content_type=JSON)
    assert answer.status_code == 400
    assert "JSON object" in answer.json()["error"]["message"]
