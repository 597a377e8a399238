"""One Redis, one gateway and one engine per run; every test brings its own tenant and endpoint."""

from collections.abc import Iterator

import pytest
import redis

from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.world import Gateway, Tenant, World, gateway
from tests.services import redis_server


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A real Redis with an epoch, a fence and a public price."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        client = redis.Redis.from_url(server.url(0))
        made = World(client, server.url(0))
        made.found()
        made.price()
        yield made
        client.close()


@pytest.fixture(scope="session")
def door(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway that most tests call."""
    with gateway(world, tmp_path_factory.mktemp("gateway"), GATEWAY_WAIT_S="1") as made:
        yield made


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine with the default plan."""
    made = Engine()
    made.plan = Plan()
    yield made
    made.stop()


@pytest.fixture
def tenant(world: World) -> Tenant:
    """A tenant with plenty of money."""
    return world.tenant()
