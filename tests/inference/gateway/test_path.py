"""The path of a request: counts, money, what the client gets and what the engine gets."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx2
import openai
import pytest

from inference.gateway.routing import HEAD_START
from kernel import wire
from kernel.pricing import Rate
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.world import SKU, Gateway, Tenant, World
from tests.services import wait_until

SYSTEM = {"role": "system", "content": "0"}
COST = 4 * 10 + 6 * 100 + 5 * 1000


def datas(response: httpx2.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


def test_a_whole_answer_is_counted_priced_and_settled(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    before = tenant.free()
    answer = door.chat(tenant, route.endpoint_id)
    assert answer.status_code == 200
    usage = answer.json()["usage"]
    assert usage["prompt_tokens"] == 10
    assert usage["completion_tokens"] == 5
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert (usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"]) == (4, 6)
    assert usage["cost"] == {"amount": "0.00000000564", "currency": "USD"}
    (event,) = door.events_of(tenant)
    assert event.counts == {"in_hit": 4, "in_miss": 6, "out": 5}
    assert (event.provenance, event.finish, event.attempt, event.waste) == ("engine_final", "stop", 1, 0)
    assert event.quoted_pico == COST
    assert event.purse == "general"
    assert event.generation == 1
    assert event.reserved_pico > COST
    assert event.engine_usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert answer.headers["x-request-id"] == str(event.subject_id)
    assert answer.headers["x-moorage-endpoint"] == route.endpoint_id
    wait_until(lambda: tenant.free() == before - COST, "settlement")
    assert tenant.reserved() == tenant.concurrent() == 0


def test_fault_45_the_engine_gets_the_clients_bytes_with_our_values_and_none_of_its_headers(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    body = f'{{ "seed":9007199254740993,"model" : "{route.endpoint_id}", "messages":[{{"content":"h\\u00e9"}}]}}'
    headers = {**tenant.headers, "cookie": "a=b", "x-user": "mallory", "x-tenant": "t", "x-forwarded-for": "::1"}
    assert httpx2.post(f"{door.url}/v1/chat/completions", headers=headers, content=body).status_code == 200
    asked = engine.asked[-1]
    assert asked["seed"] == 9007199254740993
    assert asked["model"] == "served"
    assert asked["max_tokens"] == 4096 - len(body) - 512
    assert "cache_salt" not in asked
    head = engine.heads[-1].lower()
    assert "authorization" not in head
    assert "cookie" not in head
    assert "x-user" not in head
    assert "x-tenant" not in head
    assert "x-forwarded-for" not in head


def test_tenants_of_a_shared_endpoint_have_different_cache_salts(world: World, door: Gateway, engine: Engine) -> None:
    operator = world.tenant()
    world.endpoint(operator, engine.address, shared_as="tiny-shared")
    salts = set()
    for _ in range(2):
        assert door.chat(world.tenant(), "tiny-shared").status_code == 200
        salts.add(engine.asked[-1]["cache_salt"])
    assert len(salts) == 2


def test_a_reservation_on_shared_engines_shows_its_tenants_prefixes_to_nobody(
    world: World, door: Gateway, engine: Engine
) -> None:
    salts = set()
    for _ in range(2):
        tenant = world.tenant()
        route = world.endpoint(tenant, engine.address, tpm=40_000)
        assert door.chat(tenant, route.endpoint_id).status_code == 200
        salts.add(engine.asked[-1]["cache_salt"])
    assert len(salts) == 2


@pytest.mark.parametrize(
    ("options", "with_usage", "last_with_usage"),
    [
        (None, 0, False),
        ({}, 0, False),
        ({"include_usage": False}, 0, False),
        ({"include_usage": True}, 0, True),
        ({"include_usage": True, "continuous_usage_stats": True}, 6, True),
    ],
)
def test_a_stream_shows_usage_only_where_the_client_asked_and_is_counted_all_the_same(
    world: World,
    door: Gateway,
    engine: Engine,
    tenant: Tenant,
    options: dict[str, bool] | None,
    with_usage: int,
    last_with_usage: bool,
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(word='he said ,"usage":{} \\ "')
    more = {} if options is None else {"stream_options": options}
    answer = door.chat(tenant, route.endpoint_id, stream=True, **more)
    *chunks, done = datas(answer)
    assert done == "[DONE]"
    events = [json.loads(chunk) for chunk in chunks]
    pieces = [event for event in events if event["choices"]]
    assert len(pieces) == 6
    assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == engine.plan.word * 5
    assert sum("usage" in piece for piece in pieces) == with_usage
    assert (len(events) == 7) == last_with_usage
    if last_with_usage:
        assert events[-1]["usage"]["cost"] == {"amount": "0.00000000564", "currency": "USD"}
        assert events[-1]["usage"]["prompt_cache_hit_tokens"] == 4
    (event,) = door.events_of(tenant)
    assert event.counts == {"in_hit": 4, "in_miss": 6, "out": 5}
    assert (event.provenance, event.finish) == ("engine_final", "length")


def test_without_usage_every_other_byte_of_a_chunk_is_the_engines(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    first = datas(door.chat(tenant, route.endpoint_id, stream=True))[0]
    assert first == (
        '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"served","choices":[{"index":0,'
        '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}'
    )


@pytest.mark.parametrize("cut_bytes", [1, 7, 1000])
def test_a_stream_cut_anywhere_is_the_same_stream(
    world: World, door: Gateway, engine: Engine, tenant: Tenant, cut_bytes: int
) -> None:
    route = world.endpoint(tenant, engine.address)
    whole = door.chat(tenant, route.endpoint_id, stream=True).text
    engine.plan = Plan(cut_bytes=cut_bytes)
    assert door.chat(tenant, route.endpoint_id, stream=True).text == whole


def test_text_completions_work_whole_and_streamed(world: World, door: Gateway, engine: Engine, tenant: Tenant) -> None:
    route = world.endpoint(tenant, engine.address)
    body = {"model": route.endpoint_id, "prompt": "hello", "max_tokens": 9}
    for stream in (False, True):
        answer = httpx2.post(f"{door.url}/v1/completions", headers=tenant.headers, json={**body, "stream": stream})
        assert answer.status_code == 200
        assert engine.heads[-1].startswith("POST /v1/completions ")
    assert [event.counts["out"] for event in door.events_of(tenant, at_least=2)] == [5, 5]


def test_the_official_sdk_lists_models_answers_and_streams(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key=tenant.text, max_retries=0) as sdk:
        assert route.endpoint_id in [model.id for model in sdk.models.list()]
        messages = [{"role": "user", "content": "hello"}]
        whole = sdk.chat.completions.create(model=route.endpoint_id, messages=messages, max_tokens=9)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 5
        stream = sdk.chat.completions.create(
            model=route.endpoint_id, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "word " * 5
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.prompt_tokens == 10
        text = sdk.completions.create(model=route.endpoint_id, prompt="hello", max_tokens=9)
        assert text.choices[0].text == "word " * 5
        pieces = sdk.completions.create(model=route.endpoint_id, prompt="hello", max_tokens=9, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == "word " * 5
        with pytest.raises(openai.NotFoundError) as absent:
            sdk.chat.completions.create(model="nope", messages=messages)
        assert absent.value.code == "model_not_found"


def test_the_official_asynchronous_sdk_answers_and_streams(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    ask: Any = {"model": route.endpoint_id, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}

    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key=tenant.text, max_retries=0) as sdk:
            whole = await sdk.chat.completions.create(**ask)
            assert whole.usage.completion_tokens == 5
            stream = await sdk.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "word " * 5
            assert chunks[-1].usage.prompt_tokens == 10
            assert [model.id async for model in sdk.models.list() if model.id == route.endpoint_id]

    asyncio.run(talk())


def test_a_dedicated_endpoint_takes_no_money_and_still_counts(world: World, door: Gateway, engine: Engine) -> None:
    world.price("tiny:dedicated:cpu", {"in_hit": Rate(0), "in_miss": Rate(0), "out": Rate(0)})
    tenant = world.tenant(free=None)
    route = world.endpoint(tenant, engine.address, sku="tiny:dedicated:cpu")
    answer = door.chat(tenant, route.endpoint_id)
    assert answer.json()["usage"]["cost"] == {"amount": "0", "currency": "USD"}
    (event,) = door.events_of(tenant)
    assert event.counts == {"in_hit": 4, "in_miss": 6, "out": 5}
    assert (event.quoted_pico, event.purse, event.reserved_pico) == (0, None, 0)


def test_a_tenants_own_sheet_goes_before_the_public_one(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    cheap = {"in_hit": Rate(1), "in_miss": Rate(1), "out": Rate(1)}
    sku = f"{SKU}:contract"
    world.price(sku)
    sheet = world.price(sku, cheap, owner=tenant.record.tenant_id)
    route = world.endpoint(tenant, engine.address, sku=sku)
    assert door.chat(tenant, route.endpoint_id).json()["usage"]["cost"]["amount"] == "0.000000000015"
    (event,) = door.events_of(tenant)
    assert event.sheet == sheet.sha256()


def test_models_lists_own_and_shared_endpoints_and_no_others(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    stranger = world.tenant()
    foreign = world.endpoint(stranger, engine.address)
    own = world.endpoint(tenant, engine.address)
    world.endpoint(stranger, engine.address, shared_as="tiny-listed")
    door_url = f"{door.url}/v1/models"
    listed = httpx2.get(door_url, headers=tenant.headers).json()
    assert listed["object"] == "list"
    names = {model["id"] for model in listed["data"]}
    assert {own.endpoint_id, "tiny-listed"} <= names
    assert foreign.endpoint_id not in names
    tenant.change(models=[own.endpoint_id])
    listed = httpx2.get(door_url, headers=tenant.headers).json()
    assert [model["id"] for model in listed["data"]] == [own.endpoint_id]


def test_one_connection_serves_many_requests_and_the_engines_is_used_again(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    with httpx2.Client(base_url=door.url, headers=tenant.headers) as client:
        for stream in (False, True, False, True):
            body = {
                "model": route.endpoint_id,
                "messages": [{"role": "user", "content": "x"}],
                "stream": stream,
            }
            assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert engine.connections == 1


def test_a_route_that_changes_lets_what_runs_finish_and_sends_what_comes_elsewhere(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=150, interval_s=0.02)
    other = Engine()
    try:
        with ThreadPoolExecutor(1) as caller:
            call = caller.submit(door.chat, tenant, route.endpoint_id, stream=True, max_tokens=200)
            wait_until(lambda: engine.tokens_made > 5, "a few tokens")
            moved = replace(route, generation=2, deployments=[wire.DeploymentRoute(str(uuid4()), 100, SKU)])
            world.pod(moved, other.address)
            world.redis.set(wire.route(route.endpoint_id), wire.dumps(moved))
            wait_until(
                lambda: door.chat(tenant, route.endpoint_id).status_code == 200 and len(other.asked) > 0,
                "the new route",
                5,
            )
            assert call.result().text.endswith("data: [DONE]\n\n")
        before = len(engine.asked)
        for _ in range(10):
            assert door.chat(tenant, route.endpoint_id).status_code == 200
        assert len(engine.asked) == before
    finally:
        other.stop()
    assert engine.hung_up == 0


def test_prompts_that_begin_alike_go_to_one_replica_while_it_has_room(
    world: World, door: Gateway, tenant: Tenant
) -> None:
    engines = [Engine() for _ in range(3)]
    try:
        rides = wire.DeploymentRoute(str(uuid4()), 100, SKU, prefix_affinity=True)
        route = world.endpoint(tenant, *[engine.address for engine in engines], deployments=[rides])

        def ask(system: str, **more: Any) -> int:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": str(uuid4())}]
            before = [len(engine.asked) for engine in engines]
            assert door.chat(tenant, route.endpoint_id, messages=messages, **more).status_code == 200
            return [len(engine.asked) > count for engine, count in zip(engines, before, strict=True)].index(True)

        taken = {name: {ask(name) for _ in range(4)} for name in map(str, range(12))}
        assert all(len(replicas) == 1 for replicas in taken.values())
        assert len(set.union(*taken.values())) > 1, "every beginning went to one replica"
        (first,) = taken["0"]
        engines[first].plan = Plan(gate=threading.Event())
        with ThreadPoolExecutor(HEAD_START + 1) as callers:
            held = [
                callers.submit(door.chat, tenant, route.endpoint_id, messages=[SYSTEM]) for _ in range(HEAD_START + 1)
            ]
            wait_until(lambda: tenant.concurrent() == HEAD_START + 1, "a busy replica")
            assert ask("0") != first
            engines[first].plan.gate.set()  # type: ignore[union-attr]  # set above
            assert {call.result().status_code for call in held} == {200}
        assert ask("0") == first
    finally:
        for engine in engines:
            engine.stop()


def test_an_answer_of_many_pieces_reaches_a_reader_whole(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=4000, word="w" * 200)
    assert len(datas(door.chat(tenant, route.endpoint_id, stream=True, max_tokens=4000))) == 4002
    whole = door.chat(tenant, route.endpoint_id, max_tokens=4000).json()
    assert len(whole["choices"][0]["message"]["content"]) == 800_000
    assert [event.counts["out"] for event in door.events_of(tenant, at_least=2)] == [4000, 4000]
