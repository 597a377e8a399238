"""Pull the gateways' journals and book what they hold."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from billing import lag, meter
from controlplane.signals import stop_event


class Command(BaseCommand):
    help = "Pull the gateways' journals and book what they hold."

    def handle(self, *args: Any, **options: Any) -> None:
        with lag.listener(settings.METER_METRICS_LISTEN):
            meter.run(stop_event())
