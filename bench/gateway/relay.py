"""The limit: a bare relay on uvloop. It reads and it writes, nothing else: `relay.py PORT UPSTREAM_PORT`."""

import asyncio
import sys

import uvloop


class Pipe(asyncio.Protocol):
    """One side of a relayed connection; `peer` is the other side's transport once there is one."""

    def __init__(self, peer: asyncio.Transport | None, upstream_port: int) -> None:
        self.peer = peer
        self._upstream_port = upstream_port
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        if self.peer is None:
            loop = asyncio.get_running_loop()
            self._connecting = loop.create_task(self._connect(loop))

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        def side() -> Pipe:
            return Pipe(self.transport, self._upstream_port)

        self.peer, _ = await loop.create_connection(side, "127.0.0.1", self._upstream_port)
        self.peer.write(b"".join(self._early))

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            self._early.append(data)
        else:
            self.peer.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None:
            self.peer.close()


async def serve(port: int, upstream_port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Pipe(None, upstream_port), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
