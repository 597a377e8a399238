"""Health checks of one engine: GET by a worker thread, verdicts by Kubernetes' thresholds."""

import http.client
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from typing import Any


class Probe:
    """One httpGet probe. `poll` is called often and never waits; it returns a verdict when one is reached."""

    def __init__(self, manifest: Mapping[str, Any], address: str, port: int, now: float) -> None:
        self._path = manifest["httpGet"].get("path", "/")
        self._address, self._port = address, port
        self._period_s = manifest.get("periodSeconds", 10)
        self._timeout_s = manifest.get("timeoutSeconds", 1)
        self._good_needed = manifest.get("successThreshold", 1)
        self._bad_needed = manifest.get("failureThreshold", 3)
        self._due_at = now + manifest.get("initialDelaySeconds", 0)
        self._good = self._bad = 0
        self._asked: Future[str] | None = None
        self.fault = ""

    def poll(self, now: float, workers: Executor) -> bool | None:
        """True or False at the moment a threshold is met (and at each further answer), else None."""
        if self._asked is None:
            if now >= self._due_at:
                self._due_at = now + self._period_s
                self._asked = workers.submit(_ask, self._address, self._port, self._path, self._timeout_s)
            return None
        if not self._asked.done():
            return None
        self.fault, self._asked = self._asked.result(), None
        self._good, self._bad = (0, self._bad + 1) if self.fault else (self._good + 1, 0)
        if self._good >= self._good_needed:
            return True
        return False if self._bad >= self._bad_needed else None


def _ask(address: str, port: int, path: str, timeout_s: float) -> str:
    """What is wrong with the engine's answer; "" when it is well."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return "" if 200 <= status < 400 else f"HTTP status {status}"
