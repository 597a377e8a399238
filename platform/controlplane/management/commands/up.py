"""`manage.py up`: run the whole of Moorage on this machine until Ctrl-C."""

import asyncio
import os
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.embedded import environment
from controlplane.embedded.checks import NotPossible, require_startable
from controlplane.embedded.lock import AlreadyRunning, single_instance
from controlplane.embedded.ports import PortTaken
from controlplane.embedded.run import Run
from controlplane.embedded.supervisor import PartFailed


class Command(BaseCommand):
    help = "Run the whole of Moorage on this machine: databases, control plane, gateway and engines."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--no-demo", action="store_true", help="make no demo tenant, login and key")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with single_instance(environment.state_dir(os.environ) / "supervisor.lock"):
                require_startable(os.environ)
                asyncio.run(Run(os.environ, demo=not options["no_demo"]).until_stopped())
        except (AlreadyRunning, NotPossible, PortTaken, PartFailed) as error:
            raise CommandError(str(error)) from error
