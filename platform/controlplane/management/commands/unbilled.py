"""List what engines made and nobody pays for, and the requests that explain it."""

import json
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from billing.unbilled import unbilled_list
from kernel.clock import utcnow


class Command(BaseCommand):
    help = "Per pod, window and meter: tokens made, billed, wasted and the rest, one JSON object a line."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--since", type=datetime.fromisoformat, help="ISO 8601 with a zone; six hours ago if absent"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        now = utcnow()
        for window in unbilled_list(since=options["since"] or now - timedelta(hours=6), until=now):
            line = {
                "pod_uid": str(window.pod_uid),
                "meter": window.meter,
                "since": window.since.isoformat(),
                "until": window.until.isoformat(),
                "resets": window.resets,
                "made": window.made,
                "billed": window.billed,
                "waste": window.waste,
                "rest": window.rest,
                "requests": window.requests,
            }
            self.stdout.write(json.dumps(line))
