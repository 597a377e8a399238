"""Response heads, chunk framing, and what a request head may look like before the parser sees it."""

from collections.abc import Mapping
from http import HTTPStatus

LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# The lines before chunks, by their bytes, as far as those of a usual stream go.
SIZES = {length: b"%x\r\n" % length for length in range(4096)}

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_PRINTABLE = bytes([*range(0x20, 0x7F), *range(0x80, 0x100), 0x09, 0x0D, 0x0A])


def chunk(data: bytes) -> bytes:
    """`data` as one HTTP chunk; two bytes stand behind it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def response(status: int, headers: Mapping[str, str], length: int | None) -> bytes:
    """The bytes of a response head; `length` None is chunked."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n{framing}\r\n{lines}\r\n".encode("latin-1")


def well_formed(head: bytes) -> bool:
    """No control characters, lone CR or LF, folded line or second space: nothing that two parsers read apart."""
    lines = head.count(b"\r\n")
    return (
        head.count(b"\r") == lines == head.count(b"\n")
        and b"\r\n " not in head
        and b"\r\n\t" not in head
        and head.count(b" ", 0, head.index(b"\r")) == 2
        and not head.translate(None, _PRINTABLE)
    )
