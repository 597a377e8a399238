"""Operators' acts: at once below the limit, by a second person above it, never by the same one."""

import threading
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import IntegrityError, transaction

from billing.corrections import usage_correct
from billing.models import LedgerTx, Operation, Quarantine
from billing.operations import operation_approve, operation_ask, operation_refuse
from kernel.ids import new_id
from kernel.problems import Problem
from tests.billing.harbour import UNIT, Harbour, as_system_in_a_thread, harbour, run
from tests.billing.test_corrections import issued


@pytest.fixture(autouse=True)
def limit(settings: Any) -> None:
    settings.TWO_PERSON_ABOVE = "0.01"


def ask(berth: Harbour, amount: str, *, action: str = "topup", actor: str = "ann") -> Operation | Quarantine | None:
    arguments = {"tenant_id": str(berth.tenant_id), "amount": amount, "idem_key": f"wire-{uuid4()}"}
    return operation_ask(action=action, arguments=arguments, actor=actor)


def waiting(operation: Operation | Quarantine | None) -> UUID:
    assert isinstance(operation, Operation)
    assert operation.status == "waiting"
    return operation.id


def test_up_to_the_limit_one_person_is_enough(database: None) -> None:
    berth, ann = harbour(money=0), f"ann-{uuid4()}"
    assert ask(berth, "0.005", actor=ann) is None
    assert ask(berth, "0.005", action="grant", actor=ann) is None
    assert berth.posted() == {"prepaid": UNIT // 200, "promo": UNIT // 200}


def test_acts_below_the_limit_add_up_over_a_day_whoever_gets_the_money(database: None) -> None:
    ann, friends = f"ann-{uuid4()}", [harbour(money=0) for _ in range(4)]
    for friend in friends[:3]:
        assert ask(friend, "0.003", actor=ann) is None
    fourth = waiting(ask(friends[3], "0.003", actor=ann))
    assert friends[3].posted() == {}
    # Another person has a limit of its own, and what two did together counts for neither.
    assert ask(friends[3], "0.01", actor=f"cid-{uuid4()}") is None
    operation_approve(operation_id=fourth, actor="bob")
    assert ask(friends[0], "0.001", actor=ann) is None
    assert isinstance(ask(friends[0], "0.000000000001", actor=ann), Operation)
    run("UPDATE operation SET asked_at = now() - interval '24 hours 1 second' WHERE asked_by = %s", ann)
    assert ask(friends[0], "0.01", actor=ann) is None


def test_asked_for_twice_at_once_the_day_counts_both(database: None) -> None:
    ann, berth = f"ann-{uuid4()}", harbour(money=0)
    started, answers = threading.Barrier(4), []

    def work(_: threading.Event) -> None:
        started.wait(10)
        answers.append(ask(berth, "0.006", actor=ann))

    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(as_system_in_a_thread(work))
        started.wait(10)
    assert sorted(answer is None for answer in answers) == [False, False, True]
    assert berth.posted() == {"prepaid": 6 * UNIT // 1000}


def test_above_it_money_moves_only_by_a_second_person_and_once(database: None) -> None:
    berth = harbour(money=0)
    operation = waiting(ask(berth, "5000"))
    assert berth.posted() == {}
    with pytest.raises(Problem, match="a second person"):
        operation_approve(operation_id=operation, actor="ann")
    assert operation_approve(operation_id=operation, actor="bob").decided_by == "bob"
    assert berth.posted() == {"prepaid": 5000 * UNIT}
    with pytest.raises(Problem, match="is done"):
        operation_approve(operation_id=operation, actor="cid")
    refused = waiting(ask(berth, "1", action="grant"))
    operation_refuse(operation_id=refused, actor="ann")
    with pytest.raises(Problem, match="is refused"):
        operation_approve(operation_id=refused, actor="bob")
    assert berth.posted() == {"prepaid": 5000 * UNIT}


def test_the_database_itself_refuses_one_person_for_two(database: None) -> None:
    operation = waiting(ask(harbour(money=0), "1"))
    with pytest.raises(IntegrityError, match="operation_two"), transaction.atomic():
        run("UPDATE operation SET status = 'done', decided_by = 'ann', decided_at = now() WHERE id = %s", operation)


def test_a_top_up_is_reversed_by_two(database: None) -> None:
    berth = harbour(money=UNIT)
    tx = LedgerTx.objects.get(tenant_id=berth.tenant_id, kind="topup")
    operation = waiting(operation_ask(action="reverse", arguments={"tx_id": str(tx.id)}, actor="ann"))
    operation_approve(operation_id=operation, actor="bob")
    assert berth.posted() == {}


def test_what_was_received_for_an_invoice_is_booked_by_two(database: None) -> None:
    berth = harbour()
    invoice, _ = issued(berth)
    before = berth.posted()
    arguments = {"invoice_id": str(invoice.id), "received": "0.04"}
    operation = waiting(operation_ask(action="pay", arguments=arguments, actor="ann"))
    invoice.refresh_from_db()
    assert (invoice.status, berth.posted()) == ("issued", before)
    operation_approve(operation_id=operation, actor="bob")
    invoice.refresh_from_db()
    assert invoice.status == "paid"
    assert berth.posted()["prepaid"] == before["prepaid"] + 4 * UNIT // 100


def test_fault_66_two_admins_refund_the_same_line_and_the_second_is_refused(database: None, settings: Any) -> None:
    settings.TWO_PERSON_ABOVE = "0.00001"
    berth = harbour()
    berth.hold(UNIT)
    event = berth.event()
    berth.ingest(event)
    arguments = {"event_id": str(event.event_id), "counts": {"in_miss": -100, "out": -20}, "reason": "wrong answer"}
    first, second = (waiting(operation_ask(action="correct", arguments=arguments, actor=who)) for who in ("ann", "bob"))
    operation_approve(operation_id=first, actor="bob")
    with pytest.raises(Problem, match="0 in_miss are left"):
        operation_approve(operation_id=second, actor="ann")
    assert Operation.objects.get(id=second).status == "waiting"
    with pytest.raises(Problem, match="are left"):
        usage_correct(event_id=event.event_id, counts={"out": -1}, actor="cid", reason="again")
    assert berth.posted() == {"prepaid": 10 * UNIT}


@pytest.mark.parametrize(
    ("action", "arguments", "says"),
    [
        ("pay_out", {}, "action is one of"),
        ("topup", {"tenant_id": "x"}, "malformed"),
        ("topup", {"tenant_id": str(uuid4()), "amount": "1", "idem_key": "k"}, "no tenant"),
        ("reverse", {"tx_id": str(uuid4())}, "no transaction"),
        ("correct", {"event_id": str(uuid4()), "counts": {}, "reason": "r"}, "no usage event"),
        ("correct", {"event_id": "x", "counts": {}, "reason": "r"}, "malformed"),
        ("correct", {"event_id": str(new_id()), "counts": [1], "reason": "r"}, "negative whole"),
        ("correct", {"event_id": str(new_id()), "counts": {"out": -1}}, "malformed: 'reason'"),
        ("pay", {"invoice_id": str(uuid4()), "received": "1"}, "no invoice"),
    ],
)
def test_an_act_that_cannot_be_says_why(database: None, action: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(Problem, match=says):
        operation_ask(action=action, arguments=arguments, actor="ann")
