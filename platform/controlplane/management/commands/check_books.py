"""Run the invariants of the books; exit 1 with the offending rows."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from billing import books


class Command(BaseCommand):
    help = "Run every invariant of the books; exits 1 and prints the rows that break one."

    def handle(self, *args: Any, **options: Any) -> None:
        violations = books.check()
        for violation in violations:
            self.stdout.write(f"{violation.name}: {violation.sentence}")
            for row in violation.rows:
                self.stdout.write(f"  {row}")
        if violations:
            sys.exit(1)
        self.stdout.write(f"{len(books.INVARIANTS)} invariants hold")
