"""Replay booked requests through the gateway's parser and the price code of today; exit 1 where one differs."""

import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from billing.reprice import events_reprice
from inference.gateway.core.usage import Running
from kernel.money import to_string

# What was asked for bounds a count while it is new; a count that was booked is read as it stands.
UNBOUNDED = 2**40


class Command(BaseCommand):
    help = "Replay booked requests through today's parser and prices; prints differences and exits 1 if any."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--since", required=True, help="date or instant (ISO 8601; UTC unless it has a zone)")

    def handle(self, *args: Any, **options: Any) -> None:
        checked = differing = 0
        for delta in events_reprice(since=_instant(options["since"]), counts_of=counts_of):
            checked += 1
            if delta is None:
                continue
            differing += 1
            cost = "no price" if delta.cost_pico is None else to_string(delta.cost_pico)
            self.stdout.write(
                f"{delta.booked.event_id}: booked {dict(delta.booked.counts)} = {to_string(delta.booked.cost_pico)}, "
                f"today {dict(delta.counts)} = {cost}"
            )
        self.stdout.write(f"{checked} requests replayed, {differing} differ")
        if differing:
            sys.exit(1)


def counts_of(usage: Mapping[str, Any]) -> Mapping[str, int]:
    """An engine's usage object as meters, by the gateway's own parser."""
    running = Running(n=1, prompts=1, max_tokens=UNBOUNDED, max_model_len=UNBOUNDED)
    running.finish(usage)
    return running.counts.meters()


def _instant(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError("--since is a date or an instant, such as 2026-11-01 or 2026-11-01T12:00:00Z") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)
