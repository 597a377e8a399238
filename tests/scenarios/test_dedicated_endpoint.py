"""A dedicated endpoint from the first click to the invoice line, in a real browser and over the API."""

import pytest

from controlplane.embedded.environment import ROOT
from kernel import money
from tests.scenarios.browser_walk import Login, walk
from tests.scenarios.conftest import Moorage
from tests.services import wait_until

# Kept where a person finds them after the run.
SCREENSHOTS = ROOT / ".moorage" / "screenshots"

pytestmark = [pytest.mark.engine, pytest.mark.browser]


def test_a_person_deploys_talks_and_reads_the_bill_and_pays_for_the_accelerators_seconds(
    moorage: Moorage,
) -> None:
    walk(moorage.web, Login(moorage.username, moorage.password), SCREENSHOTS, start_timeout_s=600)
    endpoint = next(
        item for item in moorage.call("GET", "/endpoints").body["endpoints"] if item["name"] == "browser-walk"
    )
    answer = moorage.chat(endpoint["id"])
    assert answer.status == 200
    event = moorage.event_of(answer.headers["x-request-id"])
    assert event["amount"] == "0"
    assert event["counts"]["out"] == answer.body["usage"]["completion_tokens"]

    deployment = moorage.query(
        "SELECT d.id FROM deployment d JOIN endpoint e ON e.id = d.endpoint_id WHERE e.name = 'browser-walk'"
    )[0][0]
    served_at = moorage.query("SELECT serving_at FROM replica WHERE deployment_id = %s", deployment)[0][0]
    assert moorage.call("DELETE", f"/endpoints/{endpoint['id']}").status == 202
    deleted_at = moorage.query(
        "SELECT deletion_requested_at FROM endpoint e JOIN deployment d ON d.endpoint_id = e.id WHERE d.id = %s",
        deployment,
    )[0][0]
    moorage.until_phase(endpoint["id"], "deleted", 60)
    lines = """SELECT sum(l.quantity), sum(l.amount) FROM rated_line l JOIN usage_event u USING (event_id)
               WHERE u.kind = 'accel' AND u.subject_id = %s"""
    seconds = (deleted_at - served_at).total_seconds()
    wait_until(lambda: (moorage.query(lines, deployment)[0][0] or 0) >= int(seconds) - 2, "accelerator seconds", 120)
    billed_s, amount = moorage.query(lines, deployment)[0]
    assert seconds - 2 < billed_s <= seconds
    num, den = moorage.query(
        """SELECT l.num_pico, l.den FROM rated_line l JOIN usage_event u USING (event_id)
           WHERE u.kind = 'accel' AND u.subject_id = %s""",
        deployment,
    )[0]
    assert int(amount) == money.div_half_even(int(billed_s * num), int(den))

    def is_on_the_draft() -> bool:
        drafts = [item for item in moorage.call("GET", "/invoices").body["invoices"] if item["status"] == "draft"]
        lines = [line for draft in drafts for line in draft["lines"] if line["meter"] == "accel_second"]
        return [line["sku"] for line in lines] == ["tiny-deepseek:dedicated:cpu"]

    wait_until(is_on_the_draft, "the line on the draft invoice", 120)
    moorage.assert_books()
