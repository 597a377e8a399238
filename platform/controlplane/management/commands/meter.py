"""Pull the gateways' journals and book what they hold."""

from typing import Any

from django.core.management.base import BaseCommand

from billing import meter
from controlplane.signals import stop_event


class Command(BaseCommand):
    help = "Pull the gateways' journals and book what they hold."

    def handle(self, *args: Any, **options: Any) -> None:
        meter.run(stop_event())
