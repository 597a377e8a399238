"""Celery: hints and timers. Nothing of value lives only in the broker; every sweep is enough alone.

The Redis settings are the ones without which tasks are lost or repeated: acknowledgement is emulated
there, so the visibility timeout must exceed the longest task, in all three places.
"""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
os.environ.setdefault("MOORAGE_ROLE", "system")

from django.conf import settings

VISIBILITY_TIMEOUT_S = 600
EVERY_S = {
    "inference.sweep": 5.0,
    "billing.take_facts": 5.0,
    "billing.rate_slices": 10.0,
    "controlplane.project": 30.0,
    "controlplane.scrape_engines": 15.0,
    "billing.take_payments": 2.0,
    "billing.draft_invoices": 15.0,
    "billing.expire_credits": 60.0,
    "billing.apply_corrections": 60.0,
    "billing.close_months": 3600.0,
    "billing.check_books": 3600.0,
    "controlplane.expire": 3600.0,
}

app = Celery("moorage")
app.conf.update(
    broker_url=settings.REDIS_URL,
    broker_transport_options={
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "global_keyprefix": "celery:",
        # A hint to a broker that is away must cost its sender next to nothing.
        "socket_connect_timeout": 1,
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0,
        "interval_max": 0,
    },
    broker_connection_retry_on_startup=True,
    result_backend=None,
    result_backend_transport_options={"visibility_timeout": VISIBILITY_TIMEOUT_S},
    visibility_timeout=VISIBILITY_TIMEOUT_S,
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_acks_on_failure_or_timeout=True,
    task_time_limit=300,
    task_soft_time_limit=240,
    worker_prefetch_multiplier=1,
    worker_soft_shutdown_timeout=30,
    worker_hijack_root_logger=False,
    task_default_queue="reconcile",
    beat_schedule={
        # A run that waited for three others says nothing new.
        name: {"task": name, "schedule": every_s, "options": {"expires": 3 * every_s}}
        for name, every_s in EVERY_S.items()
    },
)
app.autodiscover_tasks()
# Every process and thread sends its hints through this app, not only those that Celery starts.
app.set_default()
