"""The provisioning API over HTTP: who may, what is refused in which words, and that a repeat is one act."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from billing.models import Credit
from billing.scoped import credit_grant
from billing.services import sheet_publish, topup
from inference.models import Pool
from kernel import money
from kernel.clock import utcnow
from kernel.ids import new_id
from kernel.pricing import ACCEL_SECOND, IN_HIT, IN_MISS, OUT, Rate, Sheet, sheet_from_body
from tenants import services
from tests.conftest import as_role

PROBLEM = "application/problem+json"


class Api:
    """A client with one tenant's key, answered by the whole Django stack under the web role."""

    def __init__(self, scopes: list[str], name: str = "Api") -> None:
        self.tenant = services.tenant_create(name=name, currency="USD")
        _, self.key = services.api_key_create(tenant_id=self.tenant.id, name="k", actor="t", scopes=scopes)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        with as_role("web"):
            return self.send(method, path, body, **headers)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return Client().generic(
            method,
            f"/api/v1{path}",
            data=json.dumps(body) if body is not None else b"",
            content_type="application/json",
            headers={"Authorization": f"Bearer {self.key}", **headers},
        )


@pytest.fixture
def api(database: None) -> Api:
    return Api(["manage", "billing"])


def new_key() -> dict[str, str]:
    return {"Idempotency-Key": str(new_id())}


@pytest.mark.parametrize(
    ("header", "code"),
    [("", "unauthenticated"), ("Basic x", "unauthenticated"), ("Bearer nonsense", "invalid_api_key")],
)
def test_without_a_good_key_the_answer_is_401_and_says_what_to_send(api: Api, header: str, code: str) -> None:
    api.key = ""
    answer = api.call("GET", "/endpoints", Authorization=header)
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == PROBLEM
    assert answer.json()["code"] == code
    assert "WWW-Authenticate" in answer.headers


def test_a_key_for_inference_alone_may_not_provision(database: None) -> None:
    answer = Api(["inference"]).call("GET", "/endpoints")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "manage" in answer.json()["detail"]


def test_a_suspended_tenant_is_told_so(api: Api) -> None:
    services.standing_set(tenant_id=api.tenant.id, standing="suspended", actor="t")
    assert api.call("GET", "/endpoints").json()["code"] == "tenant_suspended"


def test_a_post_without_idempotency_key_is_refused(api: Api) -> None:
    answer = api.call("POST", "/api-keys", {"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_missing")
    short = api.call("POST", "/api-keys", {"name": "x"}, **{"Idempotency-Key": "short"})
    assert (short.status_code, short.json()["param"]) == (400, "Idempotency-Key")


def test_a_repeated_post_acts_once_and_never_shows_the_secret_again(api: Api) -> None:
    headers = new_key()
    first = api.call("POST", "/api-keys", {"name": "once"}, **headers)
    again = api.call("POST", "/api-keys", {"name": "once"}, **headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["key"].startswith("moorage_live_")
    assert again.json()["key"] is None
    assert again.headers["Idempotency-Replayed"] == "true"
    assert first.json()["public_id"] == again.json()["public_id"]
    names = [key["name"] for key in api.call("GET", "/api-keys").json()["api_keys"]]
    assert names.count("once") == 1


def test_the_same_idempotency_key_with_another_body_is_422(api: Api) -> None:
    headers = new_key()
    api.call("POST", "/api-keys", {"name": "one"}, **headers)
    other = api.call("POST", "/api-keys", {"name": "two"}, **headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


def test_a_refused_post_may_be_repaired_under_the_same_key(api: Api) -> None:
    headers = new_key()
    refused = api.call("POST", "/api-keys", {"name": "x", "rpm": 0}, **headers)
    assert (refused.status_code, refused.json()["param"]) == (400, "rpm")
    assert api.call("POST", "/api-keys", {"name": "x", "rpm": 5}, **headers).status_code == 201


def test_bad_input_names_the_field(api: Api) -> None:
    answer = api.call("POST", "/api-keys", {"name": "x", "scopes": ["root"]}, **new_key())
    assert answer.status_code == 400
    assert answer.json()["param"].startswith("scopes")
    broken = Client().generic(
        "POST",
        "/api/v1/api-keys",
        data=b"{",
        content_type="application/json",
        headers={"Authorization": f"Bearer {api.key}", **new_key()},
    )
    assert (broken.status_code, broken.json()["code"]) == (400, "invalid_json")


def test_another_tenants_objects_look_absent(api: Api) -> None:
    other = Api(["manage", "billing"], "Other")
    created = other.call("POST", "/api-keys", {"name": "theirs"}, **new_key()).json()
    foreign = api.call("DELETE", f"/api-keys/{created['public_id']}")
    absent = api.call("DELETE", "/api-keys/absent000000")
    assert foreign.status_code == absent.status_code == 404
    assert foreign.json()["code"] == absent.json()["code"] == "not_found"
    endpoint = "ep_" + "0" * 26
    for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume")]:
        assert api.call(method, f"/endpoints/{endpoint}{path}", **new_key()).status_code == 404


def test_a_revoked_key_is_refused_at_once(api: Api) -> None:
    created = api.call("POST", "/api-keys", {"name": "short", "scopes": ["manage"]}, **new_key()).json()
    assert api.call("DELETE", f"/api-keys/{created['public_id']}").json()["revoked_at"] is not None
    answer = api.call("GET", "/endpoints", Authorization=f"Bearer {created['key']}")
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")


def test_a_tenant_without_anything_reads_empty_lists(api: Api) -> None:
    for path, name in [("/endpoints", "endpoints"), ("/usage", "events"), ("/ledger/entries", "entries")]:
        answer = api.call("GET", path)
        assert (answer.status_code, answer.json()[name]) == (200, [])


def test_the_schema_lists_every_route(database: None) -> None:
    paths = Client().get("/api/v1/openapi.json").json()["paths"]
    assert "/api/v1/endpoints" in paths
    assert {"get", "delete"} <= set(paths["/api/v1/endpoints/{endpoint_id}"])


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/endpoints", {"Accept": "text/html"}, 406),
        ("GET", "/endpoints?format=xml", {}, 404),
        ("DELETE", "/api-keys/%00", {}, 404),
        ("GET", "/endpoints/ep_%00", {}, 404),
        ("GET", "/invoices/inv_x", {}, 404),
    ],
)
def test_odd_requests_get_a_problem_and_not_a_fault(
    api: Api, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = api.call(method, path, **headers)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == PROBLEM


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"name": "\\ud800"}', b'"text"', b"null", b"[1]"])
def test_a_body_that_is_no_good_object_is_400(api: Api, raw: bytes) -> None:
    headers = {"Authorization": f"Bearer {api.key}", **new_key()}
    with as_role("web"):
        answer = Client().generic(
            "POST", "/api/v1/api-keys", data=raw, content_type="application/json", headers=headers
        )
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("scopes", "path", "status"),
    [
        (["manage"], "/balance", 200),
        (["manage"], "/usage.csv", 200),
        (["manage"], "/invoices", 403),
        (["manage"], "/ledger/entries", 403),
        (["billing"], "/invoices", 200),
        (["billing"], "/endpoints", 200),
    ],
)
def test_a_scope_opens_what_it_is_for(database: None, scopes: list[str], path: str, status: int) -> None:
    answer = Api(scopes).call("GET", path)
    assert answer.status_code == status
    if status == 403:
        assert "`billing`" in answer.json()["detail"]


def test_scoped_credit_lies_beside_the_balance_until_it_expires(api: Api) -> None:
    ends = utcnow() + timedelta(days=3)
    credit_grant(
        tenant_id=api.tenant.id,
        currency="USD",
        amount_pico=5 * 10**11,
        scope="pool",
        value="local/berths",
        expires_at=ends,
        idem_key="spring",
        actor="ann",
    )
    told = api.call("GET", "/balance").json()
    assert told["available"] == "0"
    (credit,) = told["credits"]
    assert credit == {
        "scope": "pool",
        "value": "local/berths",
        "currency": "USD",
        "given": "0.5",
        "balance": "0.5",
        "expires_at": ends.isoformat(),
    }
    with as_role("owner"):
        Credit.objects.filter(tenant_id=api.tenant.id).update(expires_at=utcnow())
    assert api.call("GET", "/balance").json()["credits"] == []


def test_a_key_of_billing_changes_nothing_and_a_key_gives_no_scope_that_it_lacks(database: None) -> None:
    reader = Api(["billing"]).call("POST", "/api-keys", {"name": "x"}, **new_key())
    assert (reader.status_code, reader.json()["code"]) == (403, "forbidden")
    maker = Api(["manage"]).call("POST", "/api-keys", {"name": "x", "scopes": ["billing"]}, **new_key())
    assert (maker.status_code, maker.json()["param"]) == (403, "scopes")


def test_a_rotated_key_has_a_successor_and_both_work(api: Api) -> None:
    first = api.call("POST", "/api-keys", {"name": "pair", "scopes": ["manage"]}, **new_key()).json()
    headers = new_key()
    second = api.call("POST", f"/api-keys/{first['public_id']}/rotate", **headers)
    again = api.call("POST", f"/api-keys/{first['public_id']}/rotate", **headers)
    assert (second.status_code, again.json()["public_id"]) == (201, second.json()["public_id"])
    for text in (first["key"], second.json()["key"]):
        assert api.call("GET", "/endpoints", Authorization=f"Bearer {text}").status_code == 200


def test_a_file_is_csv_and_its_refusal_a_problem(api: Api) -> None:
    good = api.call("GET", "/usage.csv")
    assert good.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert good.content.decode().startswith("day,endpoint_id,api_key,meter,quantity,amount,currency")
    bad = api.call("GET", "/usage.csv?month=1999-01")
    assert (bad.status_code, bad.headers["Content-Type"], bad.json()["param"]) == (400, PROBLEM, "month")
    for path in ("/invoices/inv_x.csv", "/invoices/inv_x/facts.csv"):
        absent = api.call("GET", path)
        assert (absent.status_code, absent.headers["Content-Type"]) == (404, PROBLEM)


@pytest.mark.parametrize("body", [{}, {"replicas": 1, "tpm": 1000}])
def test_a_scale_names_replicas_or_reserved_tokens(api: Api, body: dict[str, int]) -> None:
    answer = api.call("POST", "/endpoints/ep_x/scale", body, **new_key())
    assert (answer.status_code, answer.json()["param"]) == (400, "replicas")
    assert "send replicas, or tpm for a reservation" in answer.json()["detail"]


def test_a_field_that_a_call_does_not_have_is_refused_and_not_dropped(api: Api) -> None:
    body = {"name": "tiny", "release": "tiny-deepseek", "paused": True}
    answer = api.call("POST", "/endpoints", body, **new_key())
    assert (answer.status_code, answer.json()["param"]) == (400, "paused")
    fields = "name, release, rung, region, accelerator, replicas, tpm"
    assert answer.json()["detail"] == f"paused: is no field of this call; it has {fields}"
    assert api.call("GET", "/endpoints").json()["endpoints"] == []


def test_a_release_lists_its_recipes_and_says_where_nothing_can_be_reserved(api: Api) -> None:
    releases = api.call("GET", "/releases").json()["releases"]
    tiny = next(item for item in releases if item["id"] == "tiny-deepseek")
    assert tiny["reservable"] is None
    assert tiny["recipes"] == [
        {
            "id": "tiny-deepseek-cpu",
            "accelerators": ["cpu"],
            "accelerators_per_replica": 1,
            "context_tokens": 2048,
            "verified": True,
        }
    ]


def test_an_endpoint_is_made_by_sixteen_statements_however_many_there_are(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.services.hint", lambda: None)
    region, image = f"r-{new_id().hex[-8:]}", "engine.moorage.local/vllm-cpu"
    Pool.objects.create(
        region=region,
        name="berths",
        cluster="none",
        accelerator="cpu",
        capacity=9,
        arch="amd64",
        engine_images={image: {"image": f"{image}:0.32.0", "version": "0.32.0"}},
        weights_root="/weights",
        releases=["tiny-deepseek"],
    )
    prices = {IN_HIT: Rate(0), IN_MISS: Rate(0), OUT: Rate(0), ACCEL_SECOND: Rate(2)}
    sku = "tiny-deepseek:dedicated:cpu"
    sheet_publish(sheet=Sheet(sku, region, "USD", utcnow() - timedelta(days=1), prices), actor="t")
    topup(tenant_id=api.tenant.id, currency="USD", amount_pico=10**6, idem_key="money", actor="t")
    counts = []
    for number in range(5):
        body = {"name": f"e-{number}", "release": "tiny-deepseek", "region": region}
        with as_role("web"), CaptureQueriesContext(connection) as captured:
            made = api.send("POST", "/endpoints", body, **new_key())
            counts.append(len(captured))
        assert (made.status_code, made.json()["deployments"][0]["sku"]) == (202, sku)
        assert made.json() == api.call("GET", made.headers["Location"].removeprefix("/api/v1")).json()
    assert counts == [16] * 5
    assert api.call("GET", "/balance").json()["held"] == money.to_string(5 * 3600 * 2)


def test_prices_are_the_sheets_in_force_and_a_contract_comes_before_the_list(api: Api) -> None:
    sku, now = "deepseek-ocr:shared", utcnow()
    prices = {IN_HIT: Rate(1), IN_MISS: Rate(2), OUT: Rate(3)}
    listed = Sheet(sku, settings.REGION, "USD", now - timedelta(days=1), prices)
    contract = replace(listed, tenant_id=str(api.tenant.id), meters={**prices, OUT: Rate(1)})
    for sheet in (listed, contract):
        sheet_publish(sheet=sheet, actor="t")
    mine, theirs = (
        next(item for item in who.call("GET", "/prices").json()["prices"] if item["sku"] == sku)
        for who in (api, Api(["manage"]))
    )
    assert (mine["sheet"], theirs["sheet"]) == (contract.sha256().hex(), listed.sha256().hex())
    assert sheet_from_body(mine) == contract
