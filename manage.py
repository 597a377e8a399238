#!/usr/bin/env python
"""Moorage's command line. The database role follows from the command, unless MOORAGE_ROLE names one."""

import os
import sys
from pathlib import Path

ROLES = {
    "migrate": "owner",
    "makemigrations": "owner",
    "showmigrations": "owner",
    "sqlmigrate": "owner",
    "check_books": "auditor",
    "reprice": "auditor",
    "runserver": "web",
}
# What a person may call first in a fresh clone: it makes the state folder and its secret.
CREATING = {"up", "down", "doctor"}


def main() -> None:
    # Appended, never inserted: nothing inside may hide a library (docs/adr/0001).
    sys.path.append(str(Path(__file__).resolve().parent / "platform"))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    command = sys.argv[1] if len(sys.argv) > 1 else "help"
    os.environ.setdefault("MOORAGE_ROLE", ROLES.get(command, "system"))
    from django.core.management import execute_from_command_line

    from controlplane.embedded import environment

    environment.complete(os.environ, create=command in CREATING)
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
