"""Hints and tasks: thin doors, and none of them is needed for correctness."""

import logging

from celery import Celery
from django.utils import timezone

from inference import hints, tasks
from inference.models import Endpoint
from inference.reconciler.run import reconcile
from tests.inference.conftest import create


def test_a_broker_that_does_not_answer_is_no_fault_of_the_customer(monkeypatch, caplog):
    nobody = Celery(broker="redis://127.0.0.1:1/0", set_as_current=False)
    nobody.conf.broker_transport_options = {"max_retries": 1, "interval_start": 0, "interval_max": 0}
    monkeypatch.setattr(hints, "current_app", nobody)
    with caplog.at_level(logging.WARNING):
        hints.hint("00000000-0000-0000-0000-000000000001")
    assert "the sweep finds it" in caplog.text


def test_tasks_do_what_their_names_say(harbour, tenant):
    endpoint = create(tenant)
    assert tasks.reconcile_endpoint.name == "inference.reconcile"
    tasks.reconcile_endpoint(str(endpoint.id))
    assert Endpoint.objects.get(id=endpoint.id).observed_generation == 1
    harbour.cluster.step()
    Endpoint.objects.filter(id=endpoint.id).update(due_at=timezone.now())
    tasks.sweep_all()
    assert Endpoint.objects.get(id=endpoint.id).serving == 1


def test_a_hint_that_comes_after_its_reason_is_dealt_with_makes_no_pass(harbour, tenant, monkeypatch):
    endpoint, passes = create(tenant), []
    monkeypatch.setattr(tasks, "reconcile", lambda endpoint_id: passes.append(endpoint_id) or reconcile(endpoint_id))
    harbour.settle(endpoint)
    tasks.reconcile_endpoint(str(endpoint.id))
    assert passes == []
    harbour.cluster.kill_pods()
    harbour.look()
    tasks.reconcile_endpoint(str(endpoint.id))
    assert passes == [endpoint.id]
