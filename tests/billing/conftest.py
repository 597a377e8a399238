"""A Redis of their own for lender tests, regions and journals of their own."""

from collections.abc import Iterator

import pytest
import redis
from django.conf import settings

from billing import lender, recall
from billing.meter import Gateway
from billing.models import GatewayJournal
from kernel.ids import new_id
from tests.billing.harbour import as_system_in_a_thread
from tests.billing.journal import Journal, listener
from tests.services import redis_server


@pytest.fixture(scope="session")
def redis_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator["redis.Redis"]:
    """A private server for lender tests."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        client = redis.Redis.from_url(server.url(2))
        yield client
        client.close()


@pytest.fixture
def gateway_redis(redis_of_the_run: "redis.Redis") -> "redis.Redis":
    """That server, empty."""
    redis_of_the_run.flushdb()
    return redis_of_the_run


@pytest.fixture
def region() -> str:
    """Each test lends in a region of its own, so that no float of another is walked."""
    return f"r{new_id().hex[-8:]}"


@pytest.fixture
def no_boots(database: None) -> Iterator[None]:
    """Only this test's boots are known: others are gone for good."""
    GatewayJournal.objects.all().delete()
    yield
    GatewayJournal.objects.all().delete()


@pytest.fixture
def journal(database: None) -> Iterator[tuple[Journal, Gateway]]:
    """A gateway's internal listener with nothing in its journal yet."""
    with listener() as made:
        yield made


@pytest.fixture
def lender_at_work(gateway_redis: "redis.Redis", monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The lender's loop, on the Redis that this process's settings name."""
    kwargs = gateway_redis.connection_pool.connection_kwargs
    url = f"redis://:{kwargs['password']}@{kwargs['host']}:{kwargs['port']}/{kwargs['db']}"
    monkeypatch.setattr(settings, "REDIS_GATEWAY_URL", url)
    monkeypatch.setattr(recall, "_client", lambda: gateway_redis)
    with as_system_in_a_thread(lender.run):
        yield
