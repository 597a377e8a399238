"""Settings of one gateway process, from the environment."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from kernel import wire


class Misconfigured(ValueError):
    """The sentence names the variable and what it must hold."""


class Address(NamedTuple):
    """Where to listen or connect."""

    host: str
    port: int

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def parse(cls, text: str) -> "Address":
        """`host:port`. ValueError otherwise."""
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class Config:
    """Times in seconds. `pepper` keys the digests of API keys and the cache salts."""

    gateway_id: str
    listen: Address
    internal_listen: Address
    journal_dir: Path
    redis_url: str
    internal_token: str
    pepper: bytes
    wait_s: float
    drain_s: float
    longest_s: float
    head_s: float
    body_s: float
    idle_s: float
    stall_s: float
    max_connections: int
    reuse_port: bool


def from_environment() -> Config:
    """The settings. Misconfigured where a variable is absent or malformed."""
    try:
        config = Config(
            gateway_id=os.environ.get("GATEWAY_ID", "gw-1"),
            listen=Address.parse(os.environ.get("GATEWAY_LISTEN", "127.0.0.1:8080")),
            internal_listen=Address.parse(os.environ.get("GATEWAY_INTERNAL_LISTEN", "127.0.0.1:8081")),
            journal_dir=Path(os.environ.get("GATEWAY_JOURNAL_DIR", ".moorage/journal")),
            redis_url=_redis_url(),
            internal_token=os.environ["MOORAGE_INTERNAL_TOKEN"],
            pepper=bytes.fromhex(os.environ["MOORAGE_KEY_PEPPER"]),
            wait_s=float(os.environ.get("GATEWAY_WAIT_S", "10")),
            drain_s=float(os.environ.get("GATEWAY_DRAIN_S", "30")),
            longest_s=float(os.environ.get("GATEWAY_LONGEST_S", "3600")),
            head_s=float(os.environ.get("GATEWAY_HEAD_S", "10")),
            body_s=float(os.environ.get("GATEWAY_BODY_S", "30")),
            idle_s=float(os.environ.get("GATEWAY_IDLE_S", "75")),
            stall_s=float(os.environ.get("GATEWAY_STALL_S", "60")),
            max_connections=int(os.environ.get("GATEWAY_MAX_CONNECTIONS", "10000")),
            reuse_port=os.environ.get("GATEWAY_REUSE_PORT", "0") == "1",
        )
    except KeyError as absent:
        raise Misconfigured(f"{absent.args[0]} is not set.") from None
    except ValueError as malformed:
        raise Misconfigured(f"A GATEWAY_ or MOORAGE_ variable is malformed: {malformed}.") from None
    if not 0 < config.longest_s <= wire.LONGEST_REQUEST_S:
        raise Misconfigured(
            f"GATEWAY_LONGEST_S is above 0 and at most {wire.LONGEST_REQUEST_S}: "
            "the money of a longer request would go back while it runs."
        )
    return config


def _redis_url() -> str:
    """REDIS_GATEWAY_URL, or database 1 of REDIS_URL."""
    if url := os.environ.get("REDIS_GATEWAY_URL"):
        return url
    return urlunsplit(urlsplit(os.environ["REDIS_URL"])._replace(path="/1"))
