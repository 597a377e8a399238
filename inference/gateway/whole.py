"""One question to one replica, and its whole answer, for what no client streams."""

import asyncio

from inference.gateway.config import Address
from inference.gateway.upstream import Pool, request_bytes
from kernel import wire
from kernel.problems import ENGINE_ERROR, Problem

ANSWER_S = 60.0
MAX_ANSWER_BYTES = 1 << 20


async def ask(pool: Pool, pod: wire.PodRecord, path: str, body: bytes, request_id: str) -> tuple[int, bytes]:
    """Status and body. Problem where the replica is away, or gives no whole answer in time."""
    address = Address.parse(pod.address)
    sink = _Whole()
    try:
        connection = await pool.connect(address)
    except OSError:
        raise Problem(ENGINE_ERROR, "The replica does not accept connections.") from None
    connection.ask(request_bytes(path, address, body, request_id), sink)
    try:
        async with asyncio.timeout(ANSWER_S):
            return await sink.answer
    except (TimeoutError, ConnectionError, ValueError):
        connection.abort()
        raise Problem(ENGINE_ERROR, "The replica gave no whole answer.") from None


class _Whole:
    """Collects one answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._body = bytearray()

    def head(self, status: int) -> None:
        """Sink: the status."""
        self._status = status

    def chunks(self, data: bytes) -> int:
        """Sink: nothing is passed on unread."""
        return 0

    def body(self, data: bytes) -> None:
        """Sink: bytes of the body."""
        self._body += data
        if len(self._body) > MAX_ANSWER_BYTES and not self.answer.done():
            self.answer.set_exception(ValueError("too long"))

    def flush(self) -> None:
        """Sink: nothing is passed on early."""

    def ended(self) -> None:
        """Sink: the answer is whole."""
        if not self.answer.done():
            self.answer.set_result((self._status, bytes(self._body)))

    def broke(self) -> None:
        """Sink: the replica broke off."""
        if not self.answer.done():
            self.answer.set_exception(ConnectionError("broke off"))
