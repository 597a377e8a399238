"""Reads one request: a strict head, a bounded body. What two parsers could read apart is refused."""

from dataclasses import dataclass

import httptools

from inference.gateway import http_head
from kernel.problems import (
    BODY_TOO_LARGE,
    HEADERS_TOO_LARGE,
    INVALID_PARAMETER,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
)

MAX_HEAD_BYTES = 32 << 10
MAX_BODY_BYTES = 10 << 20
_ONCE = frozenset({"host", "content-length", "transfer-encoding", "authorization", "x-api-key", "content-type"})


@dataclass(slots=True)
class Request:
    """A whole request. `path` is raw, without the query; header names are lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    request_id: str


class RequestReader:
    """Fed from `begin` on until it returns the request; one reader serves a connection.

    `stage` is what it waits for: "head" or "body". `overrun` is set when bytes came behind the request:
    then, or after a Problem, there is no next one.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self.begun = False

    def begin(self, request_id: str) -> None:
        """The first bytes of a request have arrived."""
        self.request_id = request_id
        self.begun = True
        self.stage = "head"
        self.expects_continue = False
        self.keep_alive = True
        self.overrun = False
        self._buffer = b""
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_read = self._whole = self._repeated = False
        self._body: list[bytes] = []
        self._body_bytes = 0

    def feed(self, data: bytes) -> Request | None:
        """The request, once it is whole. Problem where it may not go on; the connection must close then."""
        if self.stage == "body":
            return self._parse(data)
        self._buffer = (self._buffer + data).lstrip(b"\r\n")
        end = self._buffer.find(b"\r\n\r\n") + 4
        if len(self._buffer if end < 4 else self._buffer[:end]) > MAX_HEAD_BYTES:
            raise Problem(HEADERS_TOO_LARGE, f"The headers of a request are limited to {MAX_HEAD_BYTES} bytes.")
        if end < 4:
            return None
        head, rest = self._buffer[:end], self._buffer[end:]
        self._buffer, self.stage = b"", "body"
        if not http_head.well_formed(head):
            raise _malformed()
        request = self._parse(head)
        self.overrun = self.overrun or (request is not None and bool(rest))
        return self._parse(rest) if rest and request is None else request

    def _parse(self, data: bytes) -> Request | None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as wrapped:
            if isinstance(wrapped.__context__, Problem):
                raise wrapped.__context__ from None
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._whole:
                raise _malformed() from None
            self.overrun = True
        return self._request() if self._whole else None

    def _request(self) -> Request:
        self.begun = False
        path, _, query = self._url.decode("latin-1").partition("?")
        method = self._parser.get_method().decode()
        return Request(method, path, query, self._headers, b"".join(self._body), self.request_id)

    # Parser callbacks

    def on_message_begin(self) -> None:
        self.overrun = self._whole

    def on_url(self, url: bytes) -> None:
        if not self._whole:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_read:
            return  # a trailer is no header
        key = name.decode("latin-1").lower()
        if key in self._headers and key in _ONCE:
            self._repeated = True
        self._headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._whole:
            return
        self._head_read = True
        headers = self._headers
        coding = headers.get("transfer-encoding", "chunked").lower()
        version = self._parser.get_http_version()
        if self._repeated or "host" not in headers or version != "1.1" or coding != "chunked":
            raise _malformed()
        if "content-encoding" in headers:
            raise Problem(UNSUPPORTED_MEDIA_TYPE, "Send the body as it is, without Content-Encoding.")
        if int(headers.get("content-length", "0")) > MAX_BODY_BYTES:
            raise _too_large()
        self.expects_continue = headers.get("expect", "").lower() == "100-continue"

    def on_body(self, body: bytes) -> None:
        if self._whole:
            return
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            raise _too_large()

    def on_message_complete(self) -> None:
        if not self._whole:
            self.keep_alive = self._parser.should_keep_alive()
            self._whole = True


def _malformed() -> Problem:
    return Problem(INVALID_PARAMETER, "The request is not well-formed HTTP/1.1.")


def _too_large() -> Problem:
    return Problem(BODY_TOO_LARGE, f"The body of a request is limited to {MAX_BODY_BYTES} bytes.")
