"""Fixtures that several rooms share: one real PostgreSQL per run, migrated, committed to for real.

Money tables are append-only, so nothing is rolled back or flushed: every test makes its own tenant.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections
from pytest_django.plugin import DjangoDbBlocker

from billing import books
from controlplane.database import ROLES, bootstrap

MONEY_MOVES = "SELECT " + " + ".join(
    f"(SELECT count(*) FROM {table})" for table in ("ledger_tx", "hold_move", "usage_event", "invoice_line")
)


@pytest.fixture(scope="session")
def admin_dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An administrator's DSN: MOORAGE_TEST_ADMIN_DSN, or an embedded server of this run."""
    given = os.environ.get("MOORAGE_TEST_ADMIN_DSN")
    if given:
        yield given
        return
    from tests.services import postgres_server

    with postgres_server(tmp_path_factory.mktemp("postgres")) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def database_url(admin_dsn: str) -> Iterator[str]:
    """A fresh database with the four roles; the URL carries no user, as in production."""
    name = f"moorage_test_{os.getpid()}"
    bootstrap(admin_dsn, name, settings.SECRET)
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        members = ", ".join(f"moorage_{role}" for role in ROLES)
        exists = admin.execute("SELECT 1 FROM pg_roles WHERE rolname = 'moorage_test'").fetchone()
        if not exists:
            admin.execute("CREATE ROLE moorage_test LOGIN NOINHERIT PASSWORD 'tests'")
        admin.execute(f"GRANT {members} TO moorage_test")
        info = admin.info
        yield f"postgres://{info.host}:{info.port}/{name}"
        connections.close_all()
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def migrated_database(database_url: str, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    """The database with every migration applied by the owner."""
    location = psycopg.conninfo.conninfo_to_dict(database_url)
    for alias in connections.settings:
        target = connections.settings[alias]
        target.update(HOST=location["host"], PORT=str(location["port"]), NAME=location["dbname"])
        target.update(USER="moorage_test", PASSWORD="tests")
    with django_db_blocker.unblock():
        with as_role("owner"):
            call_command("migrate", verbosity=0)
        yield database_url


@pytest.fixture
def database(migrated_database: str) -> Iterator[None]:
    """PostgreSQL under the system role, committed for real; whoever moved money leaves the books right."""
    with as_role("auditor"):
        before = _money_moves()
    with as_role("system"):
        yield
    assert not connection.in_atomic_block
    with as_role("auditor"):
        if _money_moves() != before:
            assert books.check() == []


def _money_moves() -> int:
    """How many rows the append-only tables of money have."""
    with connection.cursor() as cursor:
        cursor.execute(MONEY_MOVES)
        return int(cursor.fetchone()[0])


@contextmanager
def as_role(role: str, *, tenant_id: UUID | None = None) -> Iterator[None]:
    """Run a block under one of the four roles; `web` may name the tenant that it sees."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        before = cursor.fetchone()[0]
        cursor.execute(f"SET ROLE moorage_{role}")
        cursor.execute("SELECT set_config('app.tenant', %s, false)", [str(tenant_id or "")])
    try:
        yield
    finally:
        connection.needs_rollback = False
        with connection.cursor() as cursor:
            cursor.execute(f"SET ROLE {before}")
            cursor.execute("SELECT set_config('app.tenant', '', false)")
