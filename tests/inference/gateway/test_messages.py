"""Anthropic's routes: what the engine is asked, what the client gets, and that every token is counted once."""

import asyncio
import json
from typing import Any

import anthropic
import httpx2
import orjson
import pytest

from inference.gateway.core import messages
from inference.gateway.core.message_answer import Events, answer
from inference.gateway.core.usage import Counts
from kernel.problems import Problem
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.world import Gateway, Tenant, World
from tests.services import wait_until

ASK = {"max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
COST = 4 * 10 + 6 * 100 + 5 * 1000


def post(door: Gateway, tenant: Tenant, model: str, path: str = "/v1/messages", **body: Any) -> httpx2.Response:
    return httpx2.post(door.url + path, headers={"x-api-key": tenant.text}, json={**ASK, "model": model, **body})


def events(response: httpx2.Response) -> list[tuple[str, dict[str, Any]]]:
    pairs = [block.split("\n") for block in response.text.split("\n\n") if block]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def test_a_message_is_answered_counted_and_priced(world: World, door: Gateway, engine: Engine, tenant: Tenant) -> None:
    route = world.endpoint(tenant, engine.address)
    found = post(door, tenant, route.endpoint_id).json()
    assert found["usage"] == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
        "cost": {"amount": "0.00000000564", "currency": "USD"},
    }
    assert (found["type"], found["role"], found["model"]) == ("message", "assistant", route.endpoint_id)
    assert found["content"] == [{"type": "text", "text": "word " * 5}]
    assert (found["stop_reason"], found["stop_sequence"]) == ("end_turn", None)
    assert engine.heads[-1].startswith("POST /v1/chat/completions ")
    (event,) = door.events_of(tenant)
    assert event.counts == {"in_hit": 4, "in_miss": 6, "out": 5}
    assert (event.quoted_pico, event.provenance) == (COST, "engine_final")


def test_a_streamed_message_counts_along_and_ends_with_its_usage(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(reasoning=2)
    found = events(post(door, tenant, route.endpoint_id, stream=True))
    assert engine.asked[-1]["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert [name for name, _ in found] == [
        "message_start",
        *("content_block_start", *["content_block_delta"] * 2, "content_block_stop"),
        *("content_block_start", *["content_block_delta"] * 3, "content_block_stop"),
        "message_delta",
        "message_stop",
    ]
    assert all(name == data["type"] for name, data in found)
    assert found[0][1]["message"]["usage"] == {"input_tokens": 10, "output_tokens": 0}
    assert [data["content_block"]["type"] for name, data in found if name == "content_block_start"] == [
        "thinking",
        "text",
    ]
    end = found[-2][1]
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert (end["usage"]["input_tokens"], end["usage"]["cache_read_input_tokens"]) == (6, 4)
    assert end["usage"]["output_tokens"] == 5
    (event,) = door.events_of(tenant)
    assert event.counts == {"in_hit": 4, "in_miss": 6, "out": 5}


def test_errors_come_in_anthropics_shape_with_our_code(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    nobody = httpx2.post(f"{door.url}/v1/messages", json={**ASK, "model": route.endpoint_id})
    for found, status, type_, code in (
        (nobody, 401, "authentication_error", "invalid_api_key"),
        (post(door, tenant, "nope"), 404, "not_found_error", "model_not_found"),
        (post(door, tenant, route.endpoint_id, max_tokens=None), 400, "invalid_request_error", "invalid_parameter"),
        (post(door, tenant, route.endpoint_id, cache_salt="x"), 400, "invalid_request_error", "reserved_parameter"),
        (post(door, world.tenant(free=0), route.endpoint_id), 404, "not_found_error", "model_not_found"),
        (post(door, tenant, route.endpoint_id, path="/v1/messages/batches"), 404, "not_found_error", "not_found"),
    ):
        assert found.status_code == status
        body = found.json()
        assert (body["type"], body["error"]["type"], body["error"]["code"]) == ("error", type_, code)
        assert body["error"]["message"]
    poor = world.tenant(free=0)
    own = world.endpoint(poor, engine.address)
    broke = post(door, poor, own.endpoint_id)
    assert (broke.status_code, broke.json()["error"]["type"]) == (402, "billing_error")
    assert broke.json()["error"]["affordable_max_tokens"] == 0
    limited = world.tenant(tpm_generated=1)
    third = post(door, limited, world.endpoint(limited, engine.address).endpoint_id)
    assert (third.status_code, third.json()["error"]["type"]) == (429, "rate_limit_error")
    assert third.json()["error"]["code"] == "token_limit_exceeded"


@pytest.mark.parametrize("plan", [Plan(tokens=9, error_after=3), Plan(tokens=9, die_after=3)])
def test_a_stream_that_cannot_go_on_ends_with_an_error_event(
    world: World, door: Gateway, engine: Engine, tenant: Tenant, plan: Plan
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = plan
    found = events(post(door, tenant, route.endpoint_id, stream=True))
    assert found[-1][0] == "error"
    assert found[-1][1]["error"]["type"] == "api_error"
    assert "message_stop" not in [name for name, _ in found]
    (event,) = door.events_of(tenant)
    assert (event.counts["out"], event.finish) == (3, "error_engine")


def test_tokens_are_counted_by_the_engine_and_cost_nothing(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant(free=0, rpm=2)
    route = world.endpoint(tenant, engine.address)
    for path_body in ({}, {"system": "be brief"}):
        found = post(door, tenant, route.endpoint_id, "/v1/messages/count_tokens", **path_body)
        assert (found.status_code, found.json()) == (200, {"input_tokens": 10})
        assert found.headers["ratelimit"].startswith('"requests"')
    assert engine.heads[-1].startswith("POST /v1/messages/count_tokens ")
    assert engine.asked[-1] == {**ASK, "model": "served", "system": "be brief"}
    wait_until(lambda: tenant.concurrent() == 0, "the place's return")
    assert (tenant.free(), tenant.reserved()) == (0, 0)
    refused = post(door, tenant, route.endpoint_id, "/v1/messages/count_tokens")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert post(door, world.tenant(), route.endpoint_id, "/v1/messages/count_tokens").status_code == 404


def chat(**body: Any) -> dict[str, Any]:
    """The chat completion that a message becomes."""
    return dict(messages.parse(orjson.dumps({**ASK, "model": "m", **body})).body)


def test_roles_thoughts_and_tools_keep_their_order_and_meaning() -> None:
    blocks = [
        {"role": "user", "content": "what is the weather"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "look it up", "signature": "s"},
                {"type": "text", "text": "one moment"},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"where": "here"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "and", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "now"},
            ],
        },
    ]
    found = chat(
        system=[{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}],
        messages=blocks,
        tools=[{"name": "look", "description": "d", "input_schema": {"type": "object"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["x"],
        top_k=5,
        thinking={"type": "disabled"},
        metadata={"user_id": "ann"},
    )
    assert found["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what is the weather"},
        {
            "role": "assistant",
            "reasoning": "look it up",
            "content": "one moment",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"where":"here"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "now"}]},
    ]
    function = {"name": "look", "description": "d", "parameters": {"type": "object"}}
    assert found["tools"] == [{"type": "function", "function": function}]
    assert (found["tool_choice"], found["parallel_tool_calls"]) == ("required", False)
    assert (found["stop"], found["top_k"], found["reasoning_effort"]) == (["x"], 5, "none")
    assert "metadata" not in found


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages.0.content"),
        ({"messages": [3]}, "messages.0.role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": 1}, "stream"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools"),
        ({"tools": [{"name": "a", "input_schema": {}}], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [{"name": "a", "input_schema": {}}], "tool_choice": {"type": []}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"a": "x" * (64 << 10)}}}}, "output_config"),
        ({"metadata": {"user_id": 3}}, "metadata"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"n": 2}, "n"),
        ({"mcp_servers": []}, "mcp_servers"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Problem) as refusal:
        chat(**body)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("finish", "stop", "tools", "expected"),
    [
        ("stop", None, False, ("end_turn", None)),
        ("stop", "END", False, ("stop_sequence", "END")),
        ("stop", 7, False, ("end_turn", None)),
        ("stop", None, True, ("tool_use", None)),
        ("tool_calls", None, True, ("tool_use", None)),
        ("length", None, True, ("max_tokens", None)),
        ("content_filter", None, False, ("refusal", None)),
    ],
)
def test_the_reason_to_stop_is_the_same_whole_and_streamed(
    finish: str, stop: object, tools: bool, expected: tuple[str, str | None]
) -> None:
    call = {"index": 0, "id": "t", "function": {"name": "look", "arguments": "{}"}}
    calls = {"tool_calls": [call]} if tools else {"content": "x"}
    choice = {"finish_reason": finish, "stop_reason": stop}
    whole = json.loads(
        answer(
            {"id": "1", "choices": [{**choice, "message": calls}]},
            model="m",
            counts=Counts(),
            cost_pico=0,
            currency="USD",
        )
    )
    assert (whole["stop_reason"], whole["stop_sequence"]) == expected
    stream = Events("m")
    stream.piece({"id": "1", "choices": [{**choice, "delta": calls}]}, 1)
    delta = json.loads(stream.end(Counts(), 0, "USD").split(b"data: ")[2].split(b"\n")[0])["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == expected


def test_arguments_that_are_no_object_are_not_lost() -> None:
    call = {"id": "t", "function": {"name": "look", "arguments": '{"where'}}
    made = {"id": "1", "choices": [{"finish_reason": "length", "message": {"content": None, "tool_calls": [call]}}]}
    found = json.loads(answer(made, model="m", counts=Counts(), cost_pico=0, currency="USD"))
    assert found["content"][0]["input"] == {"arguments": '{"where'}


def test_the_official_sdk_talks_streams_counts_and_understands_errors(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(reasoning=1)
    with anthropic.Anthropic(base_url=door.url, api_key=tenant.text, max_retries=0) as sdk:
        ask: Any = {**ASK, "model": route.endpoint_id}
        whole = sdk.messages.create(**ask)
        assert [block.type for block in whole.content] == ["thinking", "text"]
        assert (whole.usage.input_tokens, whole.usage.cache_read_input_tokens, whole.usage.output_tokens) == (6, 4, 5)
        with sdk.messages.stream(**ask) as stream:
            assert "".join(stream.text_stream) == "word " * 4
            final = stream.get_final_message()
        assert (final.usage.input_tokens, final.usage.cache_read_input_tokens, final.usage.output_tokens) == (6, 4, 5)
        assert final.stop_reason == "end_turn"
        assert sdk.messages.count_tokens(model=route.endpoint_id, messages=ask["messages"]).input_tokens == 10
        engine.plan = Plan(tool=True, finish="tool_calls")
        tools: Any = [{"name": "look", "input_schema": {"type": "object"}}]
        with sdk.messages.stream(**ask, tools=tools) as stream:
            final = stream.get_final_message()
        assert final.stop_reason == "tool_use"
        assert [(block.type, getattr(block, "input", None)) for block in final.content] == [("tool_use", {"a": "xxx"})]
        with pytest.raises(anthropic.NotFoundError):
            sdk.messages.create(**{**ask, "model": "nope"})
        engine.plan = Plan(tokens=9, error_after=3)
        with pytest.raises(anthropic.APIStatusError, match="engine failed"), sdk.messages.stream(**ask) as stream:
            stream.get_final_message()
    with anthropic.Anthropic(base_url=door.url, auth_token=tenant.text, max_retries=0) as sdk:
        engine.plan = Plan()
        assert sdk.messages.create(**ask).usage.output_tokens == 5


def test_the_official_sdks_list_of_models_has_its_own_shape_and_errors(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    tenant.change(models=[route.endpoint_id])
    with anthropic.Anthropic(base_url=door.url, api_key=tenant.text, max_retries=0) as sdk:
        page = sdk.models.list()
        (model,) = page.data
        assert (model.type, model.id, model.display_name) == ("model", route.endpoint_id, "tiny")
        assert (model.created_at.timestamp(), model.max_input_tokens) == (1, 4096)
        assert (page.first_id, page.last_id, page.has_more) == (route.endpoint_id, route.endpoint_id, False)
        tenant.change(models=["another"])
        assert sdk.models.list().data == []
        tenant.change(live=False)
        with pytest.raises(anthropic.AuthenticationError, match="revoked"):
            sdk.models.list()

    async def listed() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=door.url, auth_token=tenant.text, max_retries=0) as sdk:
            return [model.id async for model in sdk.models.list()]

    tenant.change(live=True, models=[route.endpoint_id])
    assert asyncio.run(listed()) == [route.endpoint_id]
    refused = httpx2.get(f"{door.url}/v1/models", headers={"x-api-key": tenant.text})
    assert refused.json()["error"]["code"] == "invalid_api_key"  # without Anthropic's header OpenAI's rules hold


def test_the_official_asynchronous_sdk_talks_and_streams(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    ask: Any = {**ASK, "model": route.endpoint_id}

    async def talk() -> None:
        async with anthropic.AsyncAnthropic(base_url=door.url, api_key=tenant.text, max_retries=0) as sdk:
            assert (await sdk.messages.create(**ask)).usage.output_tokens == 5
            async with sdk.messages.stream(**ask) as stream:
                assert [text async for text in stream.text_stream] == ["word "] * 5
                assert (await stream.get_final_message()).usage.cache_read_input_tokens == 4

    asyncio.run(talk())
