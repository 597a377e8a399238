"""Several watches of one API server as one stream of events, until the first of them ends."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from math import ceil

from k8s.client.connection import Connection, RefusedError
from k8s.client.kinds import Kind
from k8s.cluster import Object, UnreachableError

_GONE = 410
# Longer than the watch itself is to last: the server ends it in time, or it is not there any more.
_SILENCE_S = 10.0

_Item = tuple[Kind, Object] | UnreachableError | None


def follow(connection: Connection, since: Mapping[Kind, str], timeout_s: float) -> Iterator[list[tuple[Kind, Object]]]:
    """Watch events (bookmarks among them) of every kind after its version, for `timeout_s` at most: at each turn
    all that have come meanwhile.

    Ends at once when a version is too old for the server. UnreachableError where a watch breaks.
    """
    end_at = time.monotonic() + timeout_s
    arrived: queue.SimpleQueue[_Item] = queue.SimpleQueue()
    watches = [_Watch(connection, kind, version, timeout_s, arrived) for kind, version in since.items()]
    try:
        while (left_s := end_at - time.monotonic()) > 0:
            items = [arrived.get(timeout=left_s)]
            while not arrived.empty():
                items.append(arrived.get())
            yield [item for item in items if isinstance(item, tuple)]
            if ends := [item for item in items if not isinstance(item, tuple)]:
                if isinstance(ends[0], UnreachableError):
                    raise ends[0]
                return
    except queue.Empty:
        pass
    finally:
        for watch in watches:
            watch.stop()


class _Watch:
    """One kind's watch on a thread of its own."""

    def __init__(
        self,
        connection: Connection,
        kind: Kind,
        version: str,
        timeout_s: float,
        arrived: "queue.SimpleQueue[_Item]",
    ) -> None:
        self._connection, self._kind, self._arrived = connection, kind, arrived
        self._silence_s = timeout_s + _SILENCE_S
        self._query = kind.selector | {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(ceil(timeout_s) + 1),
        }
        self._lock = threading.Lock()
        self._stopped = False
        self._end: Callable[[], None] | None = None
        threading.Thread(target=self._run, name=f"watch-{kind.plural}", daemon=True).start()

    def stop(self) -> None:
        """End the watch, whether it is open yet or not."""
        with self._lock:
            self._stopped = True
            if self._end is not None:
                self._end()

    def _opened(self, end: Callable[[], None]) -> None:
        with self._lock:
            self._end = end
            if self._stopped:
                end()

    def _run(self) -> None:
        try:
            self._read()
        except RefusedError as error:
            gone = error.status == _GONE
            self._arrived.put(None if gone else UnreachableError(f"watch of {self._kind.plural}: {error}"))
        except UnreachableError as error:
            self._arrived.put(error)
        else:
            self._arrived.put(None)

    def _read(self) -> None:
        events = self._connection.stream(
            self._kind.collection, query=self._query, silence_s=self._silence_s, opened=self._opened
        )
        for event in events:
            if event["type"] == "ERROR":
                status = event["object"]
                raise RefusedError(status.get("code", 0), status.get("message", ""), None)
            self._arrived.put((self._kind, event))
