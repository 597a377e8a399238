"""Follow the clusters and write down what is there."""

from typing import Any

from django.core.management.base import BaseCommand

from controlplane.signals import stop_event
from inference import watcher


class Command(BaseCommand):
    help = "Follow the clusters and write down what is there."

    def handle(self, *args: Any, **options: Any) -> None:
        watcher.run(stop_event())
