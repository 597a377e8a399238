"""Lend money to the gateways' floats and take it back."""

from typing import Any

from django.core.management.base import BaseCommand

from billing import lender
from controlplane.signals import stop_event


class Command(BaseCommand):
    help = "Lend money to the gateways' floats and take it back."

    def handle(self, *args: Any, **options: Any) -> None:
        lender.run(stop_event())
