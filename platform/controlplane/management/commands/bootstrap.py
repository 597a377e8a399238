"""`manage.py bootstrap`: create the four roles and the database on an external PostgreSQL."""

import os
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import BaseCommand, CommandError

from controlplane.database import bootstrap


class Command(BaseCommand):
    help = "Create the database and its four roles as the administrator that DATABASE_ADMIN_URL names."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            admin_dsn, url = os.environ["DATABASE_ADMIN_URL"], os.environ["DATABASE_URL"]
        except KeyError as absent:
            raise CommandError(f"{absent.args[0]} is not set: it names a PostgreSQL, postgres://…") from None
        bootstrap(admin_dsn, urlsplit(url).path.strip("/"), os.environ["MOORAGE_SECRET_KEY"])
