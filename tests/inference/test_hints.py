"""Hints and tasks: thin doors, and none of them is needed for correctness."""

import logging
from datetime import datetime

from celery import Celery

from inference import hints, tasks
from inference.clock import database_now
from inference.models import Endpoint
from inference.reconciler.run import drain
from tests.inference.conftest import create


def test_a_broker_that_does_not_answer_is_no_fault_of_the_customer(harbour, monkeypatch, caplog):
    nobody = Celery(broker="redis://127.0.0.1:1/0", set_as_current=False)
    nobody.conf.broker_transport_options = {"max_retries": 1, "interval_start": 0, "interval_max": 0}
    monkeypatch.setattr(hints, "current_app", nobody)
    with caplog.at_level(logging.WARNING):
        hints.hint()
    assert "the sweep finds" in caplog.text


def test_a_thousand_hints_are_a_few_tasks(harbour, neighbours, monkeypatch):
    monkeypatch.setattr(hints, "FOLD_S", 60.0)
    for _ in range(1000):
        hints.hint()
    assert len(neighbours.hints) == 1


def test_tasks_do_what_their_names_say(harbour, tenant, neighbours):
    endpoint = create(tenant)
    assert tasks.reconcile_due.name == "inference.reconcile"
    tasks.reconcile_due(neighbours.hints.pop())
    assert Endpoint.objects.get(id=endpoint.id).observed_generation == 1
    harbour.cluster.step()
    tasks.sweep_all()
    assert Endpoint.objects.get(id=endpoint.id).serving == 1


def test_a_hint_is_taken_no_earlier_than_what_it_speaks_for_is_committed(harbour, neighbours, monkeypatch):
    monkeypatch.setattr(hints, "FOLD_S", 0.2)
    hints.hint()
    looked = []
    monkeypatch.setattr(tasks, "drain", lambda: looked.append(database_now()))
    tasks.reconcile_due(neighbours.hints[0])
    assert looked[0] >= datetime.fromisoformat(neighbours.hints[0])


def test_a_hint_that_comes_after_its_reason_is_dealt_with_makes_no_pass(harbour, tenant):
    endpoint = create(tenant)
    harbour.settle(endpoint)
    assert drain() == 0
    harbour.cluster.kill_pods()
    harbour.look()
    assert drain() > 0
