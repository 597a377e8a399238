"""Time: the one place that reads a clock. UTC inside, half-open intervals."""

from datetime import UTC, datetime, timedelta

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def utcnow() -> datetime:
    """The current instant, timezone-aware, UTC."""
    return datetime.now(UTC)


def from_ms(unix_ms: int) -> datetime:
    """Milliseconds since 1970 as an aware datetime, exactly."""
    return datetime.fromtimestamp(unix_ms // 1000, UTC) + timedelta(milliseconds=unix_ms % 1000)


def to_ms(at: datetime) -> int:
    """An aware datetime as whole milliseconds since 1970 (floor)."""
    return (at - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def day_of(at: datetime) -> datetime:
    """The midnight that begins the UTC day of `at`."""
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def month_of(at: datetime) -> tuple[datetime, datetime]:
    """The half-open UTC calendar month that holds `at`: the billing period."""
    start = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = (start + timedelta(days=32)).replace(day=1)
    return start, end
