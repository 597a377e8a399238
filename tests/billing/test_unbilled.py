"""The rest between what an engine made and what is billed, and the requests that stand beside it."""

from datetime import timedelta
from uuid import UUID, uuid4

from billing.unbilled import Unbilled, unbilled_list
from kernel.pricing import IN_HIT, IN_MISS, OUT
from kernel.usage import ENGINE_FINAL, ENGINE_PARTIAL
from tests.billing.harbour import Harbour, harbour
from tests.billing.test_counters import NOON, PROMPT, scrape

MINUTE = timedelta(minutes=1)


def serve(berth: Harbour, pod: UUID, out: int, *, began: float = 1, ended: float = 2, **more: object) -> str:
    """A request of 30 prompt tokens that ran from one minute of the hour to another; its id."""
    times = {"started_at": NOON + began * MINUTE, "ended_at": NOON + ended * MINUTE}
    event = berth.event(pod_uid=pod, counts={IN_HIT: 10, IN_MISS: 20, OUT: out}, **times, **more)
    assert berth.ingest(event).booked == 1
    return str(event.subject_id)


def of(pod: UUID) -> list[Unbilled]:
    return [one for one in unbilled_list(since=NOON, until=NOON + 60 * MINUTE) if one.pod_uid == pod]


def ids(window: Unbilled) -> list[str]:
    return [request["request_id"] for request in window.requests]


def test_what_an_engine_made_beyond_the_bill_stands_beside_the_requests_that_were_aborted(database: None) -> None:
    berth, pod = harbour(), uuid4()
    serve(berth, pod, 50)
    aborted = serve(berth, pod, 7, provenance=ENGINE_PARTIAL, finish="abort_client", waste=3)
    serve(berth, uuid4(), 9, provenance=ENGINE_PARTIAL, finish="abort_client")
    scrape(pod, [0, *[90] * 10])
    scrape(pod, [0, *[60] * 10], meter=PROMPT)
    generated, prompt = of(pod)
    assert (generated.made, generated.billed, generated.waste, generated.rest) == (90, 57, 3, 33)
    assert (prompt.made, prompt.billed, prompt.rest) == (60, 60, 0)
    assert ids(generated) == ids(prompt) == [aborted]
    assert generated.requests[0]["finish"] == "abort_client"
    assert (generated.requests[0]["out"], generated.requests[0]["waste"]) == (7, 3)


def test_a_window_that_still_grows_is_listed_as_far_as_the_last_scrape(database: None) -> None:
    berth, pod = harbour(), uuid4()
    serve(berth, pod, 20)
    scrape(pod, [0, 5, 5, 5, 20, 20])
    (window,) = of(pod)
    assert (window.made, window.billed, window.rest, window.requests) == (20, 20, 0, [])
    assert (window.since, window.until) == (NOON, NOON + 2.5 * MINUTE)


def test_a_request_that_reaches_beyond_a_window_is_named_in_both(database: None) -> None:
    berth, pod = harbour(), uuid4()
    long = serve(berth, pod, 100, began=4, ended=6)
    scrape(pod, [0, *[40] * 10, *[100] * 10])
    first, second = of(pod)
    assert (first.rest, second.rest) == (40, -40)
    assert ids(first) == ids(second) == [long]


def test_a_request_that_another_replica_had_failed_is_named_at_every_pod(database: None) -> None:
    berth, pod = harbour(), uuid4()
    earlier = -120  # no other test's requests lie there
    retried = serve(berth, uuid4(), 5, began=earlier + 1, ended=earlier + 2, attempt=2, provenance=ENGINE_FINAL)
    scrape(pod, [0, *[4] * 10], start=NOON + earlier * MINUTE)
    (window,) = unbilled_list(since=NOON + earlier * MINUTE, until=NOON - MINUTE)
    assert (window.rest, retried in ids(window)) == (4, True)
