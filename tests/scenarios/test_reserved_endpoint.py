"""A reservation from its creation to its day on the books, over the API and the gateway, on the shared engine."""

from http import HTTPStatus
from typing import Any

import pytest

from tests.scenarios.conftest import Moorage
from tests.services import wait_until

pytestmark = pytest.mark.engine

DAY_PICO = 400_000_000_000  # the demo's price of a reserved kTPM for a day
FOLLOWED_WITHIN_S = 60


def charged(moorage: Moorage, endpoint_id: str) -> list[tuple[str, int, int]]:
    """SKU, kTPM and pico-dollars of every charge for the reservation, oldest first."""
    rows = moorage.query(
        """SELECT u.sku, l.quantity, l.amount FROM rated_line l JOIN usage_event u USING (event_id)
           WHERE u.kind = 'reserved' AND u.endpoint_id = %s ORDER BY u.started_at""",
        endpoint_id,
    )
    return [(sku, int(quantity), int(amount)) for sku, quantity, amount in rows]


def scale(moorage: Moorage, endpoint_id: str, tpm: int) -> Any:
    return moorage.call("POST", f"/endpoints/{endpoint_id}/scale", {"tpm": tpm})


def test_a_tenant_keeps_a_share_of_the_shared_engine_and_pays_for_the_day(moorage: Moorage, shared: str) -> None:
    release = next(item for item in moorage.call("GET", "/releases").body["releases"] if item["id"] == shared)
    assert release["reservable"]["min_tpm"] == 1000
    free = release["reservable"]["free_tpm"]
    wanted = {"name": "kept", "rung": "reserved", "release": shared, "tpm": free + 1000}
    refusal = moorage.call("POST", "/endpoints", wanted)
    assert (refusal.status, refusal.body["param"]) == (HTTPStatus.UNPROCESSABLE_ENTITY, "tpm")
    assert f"{free} of the {free} tokens a minute" in refusal.body["detail"]

    engines = moorage.engines()
    answer = moorage.call("POST", "/endpoints", wanted | {"tpm": 1000})
    assert answer.status == HTTPStatus.ACCEPTED, answer.body
    endpoint_id = answer.body["id"]
    running = moorage.until_phase(endpoint_id, "running", FOLLOWED_WITHIN_S)
    assert (running["rung"], running["tpm"]) == ("reserved", 1000)
    assert moorage.engines() == engines

    spoken = moorage.chat(endpoint_id)
    assert spoken.status == HTTPStatus.OK, spoken.body
    event = moorage.event_of(spoken.headers["x-request-id"])
    assert (event["sku"], event["amount"]) == (f"{shared}:reserved", "0")
    assert event["counts"]["out"] == spoken.body["usage"]["completion_tokens"]
    wait_until(lambda: len(charged(moorage, endpoint_id)) == 1, "the day's charge", FOLLOWED_WITHIN_S)
    assert charged(moorage, endpoint_id) == [(f"{shared}:reserved", 1, DAY_PICO)]

    def is_paid() -> bool:
        found = moorage.chat(endpoint_id, max_tokens=400)
        assert found.status == HTTPStatus.OK, found.body
        request_id = found.headers["x-request-id"]
        beyond.append(request_id)
        return bool(found.body["usage"]["cost"]["amount"] != "0")

    beyond: list[str] = []
    wait_until(is_paid, "an answer beyond the reservation, paid by the token", FOLLOWED_WITHIN_S)
    event = moorage.event_of(beyond[-1])
    assert event["sku"] == f"{shared}:shared"
    assert event["amount"] != "0"

    assert scale(moorage, endpoint_id, 3000).status == HTTPStatus.ACCEPTED
    wait_until(lambda: len(charged(moorage, endpoint_id)) == 2, "the charge for more", FOLLOWED_WITHIN_S)
    assert charged(moorage, endpoint_id)[1] == (f"{shared}:reserved", 2, 2 * DAY_PICO)

    def is_free() -> bool:
        found = moorage.chat(endpoint_id, max_tokens=1500)
        assert found.status == HTTPStatus.OK, found.body
        return bool(found.body["usage"]["cost"]["amount"] == "0")

    wait_until(is_free, "room for more", 2 * FOLLOWED_WITHIN_S)
    assert scale(moorage, endpoint_id, 1000).status == HTTPStatus.ACCEPTED
    paused = moorage.call("POST", f"/endpoints/{endpoint_id}/pause")
    assert (paused.status, paused.body["code"]) == (HTTPStatus.CONFLICT, "conflict")

    assert moorage.call("DELETE", f"/endpoints/{endpoint_id}").status == HTTPStatus.ACCEPTED
    moorage.until_phase(endpoint_id, "deleted", FOLLOWED_WITHIN_S)
    # A gateway knows a route for a second.
    wait_until(lambda: moorage.chat(endpoint_id).status == HTTPStatus.NOT_FOUND, "the end of its route", 10)
    # Its end touches neither the shared engine nor its place at the gateways.
    assert moorage.chat(shared).status == HTTPStatus.OK
    assert moorage.engines() == engines
    assert len(charged(moorage, endpoint_id)) == 2
    moorage.assert_books()
