"""The operator's pages see every tenant: they run on a connection of their own, as the database's system role."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections, transaction


@contextmanager
def across_tenants() -> Iterator[None]:
    """One transaction under the system role; services inside it use this connection and no other.

    The web role's connection stays as it is and never gets the privilege, so no page of a tenant can reach it.
    """
    own = connections["default"]
    connections["default"] = connections["system"]
    try:
        with transaction.atomic():
            yield
    finally:
        connections["default"] = own
