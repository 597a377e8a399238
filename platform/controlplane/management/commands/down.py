"""`manage.py down`: stop the supervisor that runs here and wait until everything has ended, engines last."""

import os
import signal
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.embedded import environment
from controlplane.embedded.lock import holder_pid

STOP_WITHIN_S = 300.0


class Command(BaseCommand):
    help = "Stop Moorage as Ctrl-C would, and wait for it."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        lock = environment.state_dir(os.environ) / "supervisor.lock"
        pid = holder_pid(lock)
        if pid is None:
            self.stdout.write("Moorage is not running here.")
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN_S
        while holder_pid(lock) is not None:
            if time.monotonic() > deadline:
                raise CommandError(f"pid {pid} is still stopping; a second `make stop` hurries it")
            time.sleep(0.1)
        self.stdout.write("Moorage has stopped.")
