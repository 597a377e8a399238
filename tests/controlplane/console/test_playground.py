"""The playground's stream: byte for byte, with the member's own key, and gone as soon as the browser is."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
from django.conf import settings
from django.utils.translation import override

from controlplane.console import playground

EVENTS = [b'data: {"choices":[{"delta":{"content":"tide %d"}}]}\n\n' % number for number in range(3)]
REFUSAL = {"error": {"message": "the balance does not cover this", "code": "insufficient_balance"}}


@dataclass
class Gateway:
    """A listener that answers one way, keeps what it was asked, and notices a hang-up."""

    answer: bytes
    endless: bool = False
    asked: bytes = b""
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(next(line for line in head.lower().split(b"\r\n") if b"content-length" in line).split(b":")[1])
        self.asked = head + await reader.readexactly(length)
        writer.write(self.answer)
        await writer.drain()
        if self.endless and await reader.read() == b"":
            self.hung_up.set()
        writer.close()


@asynccontextmanager
async def listening(gateway: Gateway) -> AsyncIterator[str]:
    server = await asyncio.start_server(gateway.serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def response(status: str, body: bytes, kind: str = "text/event-stream") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode() + body


async def collect(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> bytes:
    async with listening(gateway) as url:
        monkeypatch.setattr(settings, "GATEWAY_PRIVATE_URL", url)
        body = playground.question({"model": "ep_1", "messages": []})
        return b"".join([chunk async for chunk in playground.relay("Bearer moorage_live_key", body)])


def test_events_arrive_byte_for_byte(monkeypatch):
    gateway = Gateway(response("200 OK", b"".join(EVENTS)))
    assert asyncio.run(collect(gateway, monkeypatch)) == b"".join(EVENTS)


def test_the_members_own_key_and_only_known_fields_go_to_the_gateway(monkeypatch):
    gateway = Gateway(response("200 OK", b""))
    asyncio.run(collect(gateway, monkeypatch))
    head, _, body = gateway.asked.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions ")
    assert b"moorage_live_key" in head
    assert json.loads(body) == {
        "model": "ep_1",
        "messages": [],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_field_that_the_page_does_not_have_is_dropped():
    asked = json.loads(playground.question({"model": "ep_1", "stream": False, "priority": 9, "max_tokens": 3}))
    assert asked["stream"] is True
    assert asked["max_tokens"] == 3
    assert "priority" not in asked


def test_a_refusal_arrives_as_one_event_with_its_error(monkeypatch):
    refusal = response("402 Payment Required", json.dumps(REFUSAL).encode(), "application/json")
    arrived = asyncio.run(collect(Gateway(refusal), monkeypatch))
    assert json.loads(arrived.removeprefix(b"data: ")) == REFUSAL


def test_a_refusal_without_a_reason_is_still_a_sentence(monkeypatch):
    arrived = asyncio.run(collect(Gateway(response("502 Bad Gateway", b"<html>")), monkeypatch))
    assert "refused" in json.loads(arrived.removeprefix(b"data: "))["error"]["message"]


def test_a_gateway_that_is_down_is_a_sentence_too(monkeypatch):
    monkeypatch.setattr(settings, "GATEWAY_PRIVATE_URL", "http://127.0.0.1:9")

    async def ask() -> bytes:
        return b"".join([chunk async for chunk in playground.relay("", playground.question({}))])

    arrived = asyncio.run(ask())
    assert "does not answer" in json.loads(arrived.removeprefix(b"data: "))["error"]["message"]


def test_when_the_browser_leaves_the_gateway_sees_the_hang_up(monkeypatch):
    gateway = Gateway(response("200 OK", EVENTS[0]), endless=True)

    async def leave_after_the_first_event() -> None:
        async with listening(gateway) as url:
            monkeypatch.setattr(settings, "GATEWAY_PRIVATE_URL", url)

            async def browser() -> None:
                async for _chunk in playground.relay("", playground.question({})):
                    arrived.set()

            arrived = asyncio.Event()
            reading = asyncio.create_task(browser())
            await asyncio.wait_for(arrived.wait(), 5)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            await asyncio.wait_for(gateway.hung_up.wait(), 5)

    asyncio.run(leave_after_the_first_event())
    assert gateway.hung_up.is_set()


def test_what_the_gateway_refuses_is_said_in_the_readers_language(monkeypatch):
    refusal = {"error": {"message": "The endpoint is paused; resume it in the console.", "code": "no_replica_ready"}}
    with override("zh-hans"):
        arrived = asyncio.run(
            collect(Gateway(response("503 Service Unavailable", json.dumps(refusal).encode())), monkeypatch)
        )
    assert json.loads(arrived.removeprefix(b"data: "))["error"]["message"].startswith("端点已暂停")
