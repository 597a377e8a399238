"""The books must hold after every test that touched the database; a Redis of their own for lender tests."""

from collections.abc import Iterator

import pytest
import redis

from billing import books
from tests.conftest import as_role
from tests.services import redis_server


@pytest.fixture(autouse=True)
def books_hold(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every invariant holds after the test."""
    if "database" in request.fixturenames:
        request.getfixturevalue("database")
    yield
    if "database" in request.fixturenames:
        with as_role("auditor"):
            assert books.check() == []


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
