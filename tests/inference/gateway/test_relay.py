"""The streaming relay fed by hand: what the shortcut for usual events may skip, and what it may not."""

import asyncio
from collections.abc import Callable

import orjson
import pytest

from inference.gateway.core import usage
from inference.gateway.core.request import Call, Usage
from inference.gateway.core.usage import Counts, Running
from inference.gateway.relay import End, StreamRelay
from inference.gateway.upstream import EngineConnection
from tests.inference.gateway.test_core import piece, written

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Client:
    """Takes every byte at once."""

    def __init__(self) -> None:
        self.started = self.blocked = False
        self.sent = b""
        self.writes: list[bytes] = []
        self.unread = 0  # bytes that its TCP has not acknowledged
        self.on_gone: Callable[[], None] | None = None
        self.on_drained: Callable[[], None] | None = None

    def start(self, *_: object) -> None:
        self.started = True

    def write(self, data: bytes) -> None:
        self.sent += data
        self.writes.append(data)

    @property
    def offset(self) -> int:
        return len(self.sent)

    def acknowledged(self) -> int:
        return len(self.sent) - self.unread


class Wire:
    """The engine's transport."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        pass

    abort = pause_reading = resume_reading = lambda _: None


def chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def texts(count: int, **changes: object) -> list[bytes]:
    """`count` usual chunks and the one that ends them."""
    usual = [chunk(written(piece(f"w{made}", usage_of=made))) for made in range(1, count + 1)]
    last = {**piece("")["choices"][0], "finish_reason": "stop"}
    return [*usual, chunk(written(piece("", usage_of=count, choices=[last])))]


def relayed(reads: list[bytes], wants: Usage = Usage.NONE) -> tuple[Client, StreamRelay]:
    """What a client gets and what is counted when the engine's bytes arrive in these reads."""

    async def run() -> tuple[Client, StreamRelay]:
        client = Client()
        running = Running(n=1, prompts=1, max_tokens=100, max_model_len=100)
        call = Call(b"", {}, None, "m", True, wants, 1, 1, 100)
        relay = StreamRelay(client, running, call=call, progress=lambda _: None)  # type: ignore[arg-type]
        connection = EngineConnection(lambda _: None)
        connection.connection_made(Wire())  # type: ignore[arg-type]
        relay.attach(connection)
        connection.ask(b"", relay)
        for read in reads:
            connection.data_received(read)
        relay.stop(End.GONE)
        return client, relay

    return asyncio.run(run())


def body(sent: bytes) -> bytes:
    """Chunked bytes without their framing."""
    text = b""
    while sent:
        size, _, rest = sent.partition(b"\r\n")
        length = int(size, 16)
        text, sent = text + rest[:length], rest[length + 2 :]
    return text


@pytest.mark.parametrize("wants", list(Usage))
def test_a_stream_is_the_same_whether_its_chunks_come_alone_together_or_torn(wants: Usage) -> None:
    reads = [HEAD, *texts(20), DONE]
    whole = b"".join(reads)
    alone, relay = relayed(reads, wants)
    assert relay.running.counts == Counts(miss=7, out=20)
    assert relay.end.result() is End.COMPLETE
    assert relay.delivered() == 20
    assert (b'"usage"' in alone.sent) == (wants is Usage.CONTINUOUS)
    for step in (1, 3, 100, 401, len(whole)):
        torn, again = relayed([whole[at : at + step] for at in range(0, len(whole), step)], wants)
        assert body(torn.sent) == body(alone.sent)
        assert (again.running.counts, again.end.result()) == (relay.running.counts, End.COMPLETE)


def test_chunks_of_one_read_leave_in_one_write_and_each_is_delivered_by_itself() -> None:
    usual = texts(9)[:9]
    client, relay = relayed([HEAD, usual[0], b"".join(usual[1:])])
    assert len(client.writes) == 2
    sizes = [len(chunk(usage.strip(one, orjson.loads(one[6:])))) for one in (body(read) for read in usual)]
    for unread, delivered in ((sizes[8] + 3, 7), (sizes[8] + 2, 8), (2, 9)):
        client.unread = unread
        assert relay.delivered() == delivered


def test_nothing_that_follows_an_error_is_passed_on_or_counted() -> None:
    usual = texts(5)
    error = chunk(b'data: {"error":{"message":"boom","code":500}}\n\n')
    client, relay = relayed([HEAD, *usual[:2], error, *usual[2:], DONE])
    assert b"w2" in client.sent
    assert b"w3" not in client.sent
    assert relay.running.counts.out == 2
    assert relay.end.result() is End.FAILED


def test_a_usual_chunk_behind_half_an_event_does_not_overtake_it() -> None:
    usual = texts(3)
    client, relay = relayed([HEAD, usual[0], chunk(b": a comment\n"), *usual[1:], DONE])
    sent = body(client.sent)
    assert [sent.index(word) for word in (b"w1", b": a comment", b"w2", b"w3")] == sorted(
        sent.index(word) for word in (b"w1", b": a comment", b"w2", b"w3")
    )
    assert relay.running.counts.out == 3


def test_a_chunk_that_lies_about_its_size_breaks_the_answer() -> None:
    usual = texts(2)
    _, relay = relayed([HEAD, usual[0], b"1" + usual[1][usual[1].index(b"\r\n") :]])
    assert relay.running.counts.out == 1
    assert relay.end.result() is End.FAILED


def test_a_count_that_shrinks_or_passes_the_limit_is_judged_by_the_full_parse() -> None:
    odd = [chunk(written(piece("odd", usage_of=out))) for out in (1, 101)]
    client, relay = relayed([HEAD, *texts(2)[:2], *odd])
    assert relay.running.counts == Counts(miss=7, out=2)
    assert relay.running.clamped
    assert client.sent.count(b"odd") == 2
