"""`manage.py doctor`: check each part; exits 1 with a sentence and a way out for each that fails."""

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand

from controlplane.embedded.doctor import examine


class Command(BaseCommand):
    help = "Check each part of the installation; exits 1 when one is not well."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        findings = examine(os.environ)
        for name, (is_well, text) in findings.items():
            mark = self.style.SUCCESS("ok  ") if is_well else self.style.ERROR("FAIL")
            self.stdout.write(f"{mark} {name:<11} {text}")
        if not all(is_well for is_well, _ in findings.values()):
            sys.exit(1)
