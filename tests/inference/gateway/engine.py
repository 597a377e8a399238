"""A stand-in for vLLM that speaks its shapes (taken from recorded answers) and fails on demand.

It runs on a thread of its own; `plan` says how it answers, `asked` and `hung_up` say what it saw.
"""

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Plan:
    """How the next answers look. `error_after` and `die_after` count tokens; None is never."""

    tokens: int = 5
    prompt_tokens: int = 10
    cached_tokens: int = 4
    interval_s: float = 0.0
    word: str = "word "
    status: int = 200
    body: dict[str, Any] = field(default_factory=dict)
    error_after: int | None = None
    error_code: int = 500
    die_after: int | None = None
    wait_s: float = 0.0
    final_usage: bool = True
    counts: bool = True  # say usage at all
    says: Any = None  # in its last usage, instead of the tokens that it made
    cut_bytes: int = 0  # write the stream in pieces of this many bytes
    gate: threading.Event | None = None  # answer once it is set
    finish: str | None = None  # instead of what follows from max_tokens
    stop_reason: str | None = None
    reasoning: int = 0  # this many of the tokens are thoughts
    tool: bool = False  # the tokens are the arguments of one call


class Engine:
    """Listens on 127.0.0.1; `address` is host:port."""

    def __init__(self, port: int = 0) -> None:
        self.plan = Plan()
        self.asked: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.hung_up = 0
        self.hung_up_at = 0.0
        self.tokens_made = 0
        self.connections = 0
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self._port))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def stop(self) -> None:
        """Close the listener and every connection."""

        def close() -> None:
            self._server.close()
            self._loop.stop()

        self._loop.call_soon_threadsafe(close)
        self._thread.join(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.heads.append(head)
                self.asked.append(body)
                await self._answer(head, body, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, head: str, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        plan = self.plan
        gone = asyncio.ensure_future(reader.read(1))
        work = asyncio.ensure_future(self._write(plan, head.split()[1], body, writer))
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.hung_up += 1
            self.hung_up_at = time.monotonic()
            work.cancel()
            raise ConnectionResetError
        gone.cancel()
        await asyncio.wait({gone})
        await work

    async def _write(self, plan: Plan, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        chat = "/chat/" in path
        await asyncio.sleep(plan.wait_s)
        if plan.gate is not None:
            await asyncio.to_thread(plan.gate.wait, 60)
        if plan.status != 200:
            _whole(writer, plan.status, plan.body)
        elif path.endswith("/count_tokens"):
            _whole(writer, 200, {"input_tokens": plan.prompt_tokens})
        elif body.get("stream"):
            await self._stream(plan, chat, body, writer)
        else:
            if plan.die_after is not None:
                raise ConnectionResetError
            await asyncio.sleep(plan.interval_s * plan.tokens)
            self.tokens_made += plan.tokens
            text = plan.word * (plan.tokens - plan.reasoning)
            choice = {"message": _message(plan, text)} if chat else {"text": text}
            answer = {
                "id": "cmpl-1",
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        **choice,
                        "finish_reason": plan.finish or "stop",
                        "stop_reason": plan.stop_reason,
                    }
                ],
                "usage": _usage(plan, plan.tokens, final=True),
                "kv_transfer_params": None,
            }
            _whole(writer, 200, answer)
        await writer.drain()

    async def _stream(self, plan: Plan, chat: bool, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        if chat:
            await self._event(plan, writer, _piece({"delta": {"role": "assistant", "content": ""}}, plan, 0))
        for made in range(1, plan.tokens + 1):
            if plan.error_after == made - 1:
                error = {"message": "boom", "type": "x", "param": None, "code": plan.error_code}
                await self._event(plan, writer, {"error": error})
                await self._event(plan, writer, "[DONE]")
                writer.write(b"0\r\n\r\n")
                return
            if plan.die_after == made - 1:
                await writer.drain()
                raise ConnectionResetError
            await asyncio.sleep(plan.interval_s)
            text = {"delta": _delta(plan, made)} if chat else {"text": plan.word}
            finish = None
            if made == plan.tokens:
                finish = plan.finish or ("length" if plan.tokens == body.get("max_tokens") else "stop")
                text["stop_reason"] = plan.stop_reason
            self.tokens_made += 1
            await self._event(plan, writer, _piece(text, plan, made, finish))
        if plan.final_usage and plan.counts:
            await self._event(plan, writer, {"choices": [], "usage": _usage(plan, plan.tokens, final=True)})
        await self._event(plan, writer, "[DONE]")
        writer.write(b"0\r\n\r\n")

    async def _event(self, plan: Plan, writer: asyncio.StreamWriter, value: dict[str, Any] | str) -> None:
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        data = f"data: {text}\n\n".encode()
        framed = b"%x\r\n%b\r\n" % (len(data), data)
        step = plan.cut_bytes or len(framed)
        for start in range(0, len(framed), step):
            writer.write(framed[start : start + step])
            await writer.drain()
            if plan.cut_bytes:
                await asyncio.sleep(0)


def _usage(plan: Plan, made: int, *, final: bool = False) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": plan.prompt_tokens,
        "total_tokens": plan.prompt_tokens + made,
        "completion_tokens": made,
    }
    if final:
        usage["prompt_tokens_details"] = {"cached_tokens": plan.cached_tokens}
        if plan.says is not None:
            usage["completion_tokens"] = plan.says
    return usage


def _message(plan: Plan, text: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if plan.reasoning:
        message["reasoning"] = plan.word * plan.reasoning
    if plan.tool:
        message["content"] = None
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    return message


def _delta(plan: Plan, made: int) -> dict[str, Any]:
    if made <= plan.reasoning:
        return {"reasoning": plan.word}
    if not plan.tool:
        return {"content": plan.word}
    first = made == plan.reasoning + 1
    arguments = '{"a":"' if first else '"}' if made == plan.tokens else "x"
    named = {"id": "call_1", "type": "function"} if first else {}
    function = {"arguments": arguments, **({"name": "look"} if first else {})}
    return {"tool_calls": [{"index": 0, **named, "function": function}]}


def _piece(choice: dict[str, Any], plan: Plan, made: int, finish: str | None = None) -> dict[str, Any]:
    piece = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "served",
        "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": finish}],
    }
    return {**piece, "usage": _usage(plan, made)} if plan.counts else piece


def _whole(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
    data = json.dumps(body, separators=(",", ":")).encode()
    writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n" % status)
    writer.write(b"content-length: %d\r\n\r\n%b" % (len(data), data))
