"""The second start finds everything again, and restarting a part never touches an engine."""

import pytest

from kernel.ids import new_id
from tests.scenarios.conftest import ENGINE_WITHIN_S, Moorage
from tests.services import wait_until

pytestmark = pytest.mark.engine


def test_the_second_start_brings_back_the_same_data_and_the_same_endpoints(moorage: Moorage, shared: str) -> None:
    created = moorage.call("POST", "/api-keys", {"name": f"before-{new_id()}", "scopes": ["inference"]}).body
    answer = moorage.chat(shared)
    moorage.event_of(answer.headers["x-request-id"])
    balance = moorage.call("GET", "/balance").body["balance"]
    endpoint = "SELECT id FROM endpoint WHERE name = %s"
    before = moorage.query(endpoint, shared)

    moorage.restart()

    assert moorage.query(endpoint, shared) == before
    assert moorage.call("GET", "/balance").body["balance"] == balance
    wait_until(lambda: moorage.serves(shared), "the same endpoint", ENGINE_WITHIN_S)
    assert moorage.chat(shared, key=created["key"]).status == 200
    moorage.assert_books()


def test_the_doctor_finds_every_part_well(moorage: Moorage, shared: str) -> None:
    done = moorage.manage("doctor")
    assert done.returncode == 0, done.stdout
    assert "floats are lent" in done.stdout


@pytest.mark.parametrize("part", ["agent", "gateway", "worker", "watcher", "web", "meter", "lender"])
def test_restarting_a_part_touches_no_engine(moorage: Moorage, shared: str, part: str) -> None:
    before = moorage.engines()
    assert before
    moorage.kill(part)
    wait_until(lambda: moorage.serves(shared), f"service after kill -9 of {part}", 60)
    assert moorage.engines() == before
