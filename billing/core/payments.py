"""Payment notices: a provider's signed words about money that came in or went back."""

import hmac
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from kernel import ids, money

WINDOW = timedelta(minutes=5)
SUCCEEDED, REFUNDED = "payment.succeeded", "payment.refunded"
_HEADER = re.compile(r"t=(\d{1,12}),v1=([0-9a-f]{64})")


class Unbelievable(ValueError):
    """Why a notice is not believed or understood: a sentence for the provider's log."""


@dataclass(frozen=True, slots=True)
class Notice:
    """`payment` is the provider's id of the payment, which credits once however many notices speak of it."""

    notice_id: str
    type: str
    payment: str
    tenant_id: UUID
    currency: str
    amount_pico: int


def signature(body: bytes, *, secret: str, at: int) -> str:
    """The header for a body signed at that Unix second: 't=…,v1=' and HMAC-SHA256 over '<t>.<body>' in hex."""
    return f"t={at},v1={hmac.digest(secret.encode(), b'%d.%s' % (at, body), 'sha256').hex()}"


def verify(header: str, body: bytes, *, secret: str, now: datetime | None) -> None:
    """Unbelievable unless the header signs this body, within five minutes of `now` (None: at any time)."""
    match = _HEADER.fullmatch(header)
    if match is None:
        raise Unbelievable("the signature header has the form t=<unix seconds>,v1=<64 hex digits>")
    at = int(match[1])
    if not secret or not hmac.compare_digest(signature(body, secret=secret, at=at), header):
        raise Unbelievable("the signature does not match the body")
    if now is not None and abs(now.timestamp() - at) > WINDOW.total_seconds():
        raise Unbelievable("the signature is more than five minutes old or ahead")


def parse(body: bytes) -> Notice:
    """The notice in a body. Unbelievable where a field is absent or malformed."""
    try:
        value = json.loads(body.decode())
        notice = Notice(
            notice_id=_word(value["id"]),
            type=_word(value["type"]),
            payment=_word(value["payment"]),
            tenant_id=ids.decode(ids.TENANT, _word(value["tenant"])),
            currency=_word(value["currency"]),
            amount_pico=money.parse(_word(value["amount"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Unbelievable(f"id, type, payment, tenant, currency and amount are wanted: {error!r}") from error
    if notice.type not in {SUCCEEDED, REFUNDED}:
        raise Unbelievable(f"type is {SUCCEEDED} or {REFUNDED}")
    if notice.currency not in money.MINOR_DIGITS or notice.amount_pico <= 0:
        raise Unbelievable(f"currency is one of {', '.join(money.MINOR_DIGITS)}, amount above zero")
    return notice


def _word(value: str) -> str:
    if not re.fullmatch(r"[\w.:-]{1,100}", value, re.ASCII):
        raise ValueError("a word has 1 to 100 letters, digits and _ . : -")
    return value
