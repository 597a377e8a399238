"""HTTP to one API server through the official client: credentials, TLS, time limits. The only `kubernetes` import."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import urllib3
from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.config import ConfigException, new_client_from_config_dict

from k8s.cluster import Object, SilentError, UnreachableError

APPLY = "application/apply-patch+yaml"
JSON = "application/json"

_USER_AGENT = "moorage"
# More than the ten seconds that an admission webhook has unless told otherwise.
_CONNECT_S, _READ_S = 5.0, 12.0
# One per kind that is watched, and as many threads that apply meanwhile.
_CONNECTIONS = 32
# What a stream that is being closed under its reader may raise.
_BROKEN = (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError)


class RefusedError(Exception):
    """The API server answered with a status of 400 or more."""

    def __init__(self, status: int, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s


class Connection:
    """Calls to one API server; any thread may use it. Every call raises RefusedError or UnreachableError."""

    def __init__(self, kubeconfig: Mapping[str, Any], *, context: str | None = None) -> None:
        """`kubeconfig` as parsed; `context` names one of its contexts. ValueError where it makes no sense."""
        settings = Configuration()
        settings.retries = False
        settings.connection_pool_maxsize = _CONNECTIONS
        settings.keep_alive = True
        try:
            self._client: ApiClient = new_client_from_config_dict(  # type: ignore[no-untyped-call]
                dict(kubeconfig), context=context, persist_config=False, client_configuration=settings
            )
        except ConfigException as error:
            raise ValueError(f"the kubeconfig cannot be used: {error}") from error
        self._client.user_agent = _USER_AGENT

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = JSON,
    ) -> Object:
        """One request, answered by a JSON object."""
        text = self.text(method, path, query=query, body=body, content_type=content_type)
        try:
            answer: Object = json.loads(text)
        except ValueError as error:
            raise UnreachableError(f"{method} {path}: no JSON came back: {text[:200]!r}") from error
        return answer

    def text(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = JSON,
    ) -> str:
        """One request, answered by text."""
        response = self._send(method, path, query or {}, body, content_type, _READ_S)
        try:
            data: bytes = response.data
        except _BROKEN as error:
            raise _unreachable(f"{method} {path}", error) from error
        if response.status >= 400:
            raise _refused(response, data)
        return data.decode(errors="replace")

    def stream(
        self, path: str, *, query: Mapping[str, str], silence_s: float, opened: Callable[[Callable[[], None]], None]
    ) -> Iterator[Object]:
        """JSON objects line by line as they come, until the server ends it or is silent for `silence_s`.

        `opened` gets a function that ends the stream from another thread.
        """
        response = self._send("GET", path, query, None, JSON, silence_s)
        try:
            if response.status >= 400:
                raise _refused(response, response.data)
            opened(lambda: _end(response))
            rest = b""
            for chunk in response.stream():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (json.loads(line) for line in lines)
        except _BROKEN as error:
            raise _unreachable(f"GET {path}", error) from error
        finally:
            response.close()

    def _send(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str, read_s: float
    ) -> urllib3.HTTPResponse:
        headers = {"Content-Type": content_type, "Accept": JSON} if body is not None else {"Accept": JSON}
        try:
            request = self._client.param_serialize(
                method, path, None, list(query.items()), headers, body, auth_settings=["BearerToken"]
            )
            answer = self._client.call_api(*request, _request_timeout=(_CONNECT_S, read_s))
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise _unreachable(f"{method} {path}", error) from error
        response: urllib3.HTTPResponse = answer.response
        return response


def _end(response: urllib3.HTTPResponse) -> None:
    """Wake whoever reads from it; one that has ended already has nobody."""
    with contextlib.suppress(ValueError, OSError):
        response.shutdown()


def _unreachable(call: str, error: Exception) -> UnreachableError:
    ran_out = isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError)
    return (SilentError if ran_out else UnreachableError)(f"{call}: {error}")


def _refused(response: urllib3.HTTPResponse, data: bytes) -> RefusedError:
    """The server's own sentence where it gave a Status object, else what it sent."""
    try:
        message = json.loads(data)["message"]
    except (ValueError, KeyError, TypeError):
        message = data.decode(errors="replace")[:500] or f"HTTP status {response.status}"
    after = response.headers.get("Retry-After", "")
    return RefusedError(response.status, message, float(after) if after.isdigit() else None)
