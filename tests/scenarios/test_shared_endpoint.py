"""The shared endpoint, billed per token: what the engine counted is what was billed, whatever happened."""

import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import urllib3

from kernel import money
from kernel.ids import new_id
from tests.scenarios.conftest import Moorage
from tests.services import soak, wait_until

pytestmark = pytest.mark.engine


def engine_counters(moorage: Moorage, model: str) -> tuple[int, int, int]:
    """Prompt and generation tokens that the shared engine itself has counted, and prompt tokens from its cache."""
    address = moorage.query(
        """SELECT o.facts -> 'pods' -> 0 ->> 'address' FROM observed o JOIN deployment d ON d.id = o.deployment_id
           JOIN endpoint e ON e.id = d.endpoint_id WHERE e.name = %s""",
        model,
    )[0][0]
    text = urllib3.request("GET", f"http://{address}/metrics", timeout=10).data.decode()
    found = [
        re.search(rf"^vllm:{name}_total\{{[^}}]*\}} ([0-9.e+]+)$", text, re.MULTILINE)
        for name in ("prompt_tokens", "generation_tokens", "prefix_cache_hits")
    ]
    assert all(found), text[:500]
    prompt, generation, cached = (int(float(one[1])) for one in found if one)
    return prompt, generation, cached


def chunks(response: urllib3.BaseHTTPResponse) -> list[str]:
    """The data of each server-sent event."""
    text = b"".join(response.stream(4096)).decode()
    return [event.removeprefix("data: ") for event in text.split("\n\n") if event]


def new_tenant(moorage: Moorage, top_up_pico: int, **limits: int) -> tuple[str, str]:
    """A tenant with that much money: its id and a key for both doors."""
    tenant_id, key = moorage.shell(
        f"""
from billing.services import topup
from controlplane.keys import key_create
from tenants.services import tenant_create
from kernel.ids import new_id
tenant = tenant_create(name="Scenario", currency="USD")
if {top_up_pico}:
    topup(tenant_id=tenant.id, currency="USD", amount_pico={top_up_pico}, idem_key=str(new_id()), actor="test")
key, text = key_create(tenant_id=tenant.id, name="k", actor="test", scopes=["inference", "manage"], **{limits!r})
print(json.dumps([str(tenant.id), text]))
"""
    )
    return tenant_id, key


def test_billed_tokens_are_the_engines_own_and_the_line_is_tokens_times_price(moorage: Moorage, shared: str) -> None:
    before = engine_counters(moorage, shared)
    answers = [moorage.chat(shared, max_tokens=n) for n in (1, 5, 17)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    events = chunks(moorage.stream(shared, stream_options={"include_usage": True}))
    assert events[-1] == "[DONE]"
    streamed = json.loads(events[-2])["usage"]
    usages = [answer.body["usage"] for answer in answers] + [streamed]
    after = engine_counters(moorage, shared)
    assert after[0] - before[0] == sum(usage["prompt_tokens"] for usage in usages)
    assert after[1] - before[1] == sum(usage["completion_tokens"] for usage in usages)

    for answer in answers:
        event = moorage.event_of(answer.headers["x-request-id"])
        usage = answer.body["usage"]
        assert event["counts"].get("out") == usage["completion_tokens"]
        assert sum(event["counts"].get(m, 0) for m in ("in_hit", "in_miss")) == usage["prompt_tokens"]
        assert event["amount"] == usage["cost"]["amount"]
        lines = moorage.query(
            "SELECT meter, quantity, num_pico, den, amount FROM rated_line WHERE event_id = %s",
            event["event_id"],
        )
        counted = {meter: count for meter, count in event["counts"].items() if count}
        assert {meter: int(quantity) for meter, quantity, *_ in lines} == counted
        assert all(amount * den == quantity * num for _, quantity, num, den, amount in lines)
        assert money.to_string(int(sum(line[4] for line in lines))) == event["amount"]
    moorage.assert_books()


def test_the_engines_counters_are_kept_beside_the_bill(moorage: Moorage, shared: str) -> None:
    assert moorage.chat(shared, max_tokens=3).status == 200
    counted = engine_counters(moorage, shared)
    kept = """SELECT c.value FROM engine_counter c WHERE c.pod_uid::text = (
        SELECT o.facts -> 'pods' -> 0 ->> 'uid' FROM observed o JOIN deployment d ON d.id = o.deployment_id
        JOIN endpoint e ON e.id = d.endpoint_id WHERE e.name = %s) ORDER BY c.meter DESC"""
    wait_until(lambda: [int(value) for (value,) in moorage.query(kept, shared)] == list(counted[:2]), "a scrape", 60)
    moorage.assert_books()


def test_a_client_that_hangs_up_is_billed_once_for_what_was_delivered(moorage: Moorage, shared: str) -> None:
    response = moorage.stream(shared, max_tokens=1500, ignore_eos=True)
    request_id = response.headers["x-request-id"]
    received = b""
    while received.count(b"\n\n") < 30:
        received += response.read(64, decode_content=False)
    response.close()
    event = moorage.event_of(request_id)
    assert event["finish"] == "abort_client"
    # At least what was read; beyond it only what the bounded socket buffers held, far from 1,500.
    assert received.count(b"\n\n") - 2 <= event["counts"]["out"] < 600
    assert len(moorage.query("SELECT 1 FROM usage_event WHERE subject_id = %s", request_id)) == 1
    moorage.assert_books()


def test_money_for_exactly_10_requests_and_200_at_once_admits_exactly_10(moorage: Moorage, shared: str) -> None:
    # Under a sheet that prices answers alone, an answer of full length costs its whole reservation.
    each = 8 * 600_000
    tenant_id, key = new_tenant(moorage, 10 * each, concurrency=1000)
    moorage.shell(
        f"""
from datetime import timedelta
from billing.services import sheet_publish
from controlplane.projection import project_sheets
from kernel.clock import utcnow
from kernel.pricing import Rate, Sheet
meters = {{"in_hit": Rate(0), "in_miss": Rate(0), "out": Rate(600_000)}}
start = utcnow() - timedelta(minutes=1)
sheet_publish(sheet=Sheet("{shared}:shared", "local", "USD", start, meters, "{tenant_id}"), actor="test")
project_sheets()
print(1)
"""
    )
    time.sleep(2)  # gateways keep a price list for a second

    def ask(_: int) -> int:
        response = moorage.stream(shared, key=key, max_tokens=8, ignore_eos=True)
        response.read()
        return response.status

    with ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(ask, range(200)))
    assert statuses.count(200) == 10
    assert statuses.count(402) == 190
    spent = "SELECT count(*), sum(quoted_pico) FROM usage_event WHERE tenant_id = %s"
    wait_until(lambda: moorage.query(spent, tenant_id)[0] == (10, 10 * each), "10 events")
    moorage.assert_books()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(soak(10)))
@pytest.mark.parametrize("part", ["gateway", "meter", "lender", "worker"])
def test_kill_9_in_mid_work_loses_nothing_acknowledged_and_charges_nothing_twice(
    moorage: Moorage, shared: str, part: str, seed: int
) -> None:
    chance = random.Random(f"{part} {seed}")
    answered: list[str] = []

    def work(max_tokens: int) -> None:
        try:
            answer = moorage.chat(shared, max_tokens=max_tokens)
        except urllib3.exceptions.HTTPError:
            return
        if answer.status == 200:
            answered.append(answer.headers["x-request-id"])

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(work, chance.randint(2, 40)) for _ in range(40)]
        time.sleep(chance.uniform(0.1, 1.0))
        moorage.kill(part)
        for job in jobs:
            job.result()
    wait_until(lambda: moorage.serves(shared), f"service after kill -9 of {part}", 60)
    assert answered
    for request_id in answered:
        moorage.event_of(request_id)
    doubled = "SELECT subject_id FROM usage_event WHERE kind = 'tokens' GROUP BY 1 HAVING count(*) > 1"
    assert moorage.query(doubled) == []
    moorage.assert_books()


def test_each_refusal_has_its_own_status_code_and_sentence(moorage: Moorage, shared: str) -> None:
    _, poor = new_tenant(moorage, 0)
    _, slow = new_tenant(moorage, money.PICO, rpm=1)
    assert moorage.chat(shared, key=slow).status == 200
    wrong = moorage.key[:-1] + ("0" if moorage.key[-1] != "0" else "1")
    cases = {
        "invalid_api_key": (401, moorage.chat(shared, key=wrong)),
        "model_not_found": (404, moorage.chat("ep_" + "0" * 26)),
        "insufficient_balance": (402, moorage.chat(shared, key=poor)),
        "rate_limit_exceeded": (429, moorage.chat(shared, key=slow)),
        "invalid_json": (400, moorage.infer("/v1/chat/completions", b'{"model": ')),
        "reserved_parameter": (400, moorage.chat(shared, cache_salt="x")),
        "context_length_exceeded": (
            400,
            moorage.infer("/v1/completions", {"model": shared, "prompt": "harbour " * 5000, "max_tokens": 4}),
        ),
    }
    for code, (status, answer) in cases.items():
        assert answer.status == status, (code, answer)
        error = answer.body["error"]
        assert error["code"] == code
        assert set(error) >= {"message", "type", "param", "code"}
        assert len(error["message"]) > 15
    moorage.assert_books()


def test_the_official_sdk_streams(moorage: Moorage, shared: str) -> None:
    client = openai.OpenAI(base_url=f"{moorage.gateway}/v1", api_key=moorage.key, max_retries=0)
    assert shared in [model.id for model in client.models.list()]
    stream = client.chat.completions.create(
        model=shared,
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = [chunk.usage for chunk in stream][-1]
    assert usage is not None
    assert 0 < usage.completion_tokens <= 12
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="absent", messages=[{"role": "user", "content": "x"}])


def test_a_revoked_key_is_refused_from_the_next_request_on(moorage: Moorage, shared: str) -> None:
    created = moorage.call("POST", "/api-keys", {"name": f"short-{new_id()}", "scopes": ["inference"]})
    assert created.status == 201
    key = created.body["key"]
    assert moorage.chat(shared, key=key).status == 200
    assert moorage.call("DELETE", f"/api-keys/{created.body['public_id']}").status == 200
    assert moorage.chat(shared, key=key).status == 401
