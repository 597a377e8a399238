"""The database's four roles: made once by an administrator, used one per process.

owner migrates, web sees one tenant at a time (row level security), system works across tenants
(worker, meter, lender, watcher), auditor reads everything and writes nothing.
"""

from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from controlplane.secrets import role_password

ROLES = ("owner", "web", "system", "auditor")
# No transaction of ours waits so long between two statements.
HUNG_MS = 15_000


def django_config(url: str, role: str, secret: str) -> dict[str, Any]:
    """Django's DATABASES entry for `postgres://host:port/name` under one role.

    ValueError for another scheme or role. A user and password in the URL win over the derived ones.
    """
    if role not in ROLES:
        raise ValueError(f"MOORAGE_ROLE is one of {', '.join(ROLES)}, not {role!r}")
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"} or not parts.path.strip("/"):
        raise ValueError("DATABASE_URL has the form postgres://host:port/name")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.strip("/"),
        "HOST": parts.hostname or "127.0.0.1",
        "PORT": str(parts.port or 5432),
        "USER": parts.username or f"moorage_{role}",
        "PASSWORD": parts.password or role_password(secret, role),
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "pool": {"min_size": 1, "max_size": 8, "timeout": 10},
            # A process that hangs in a transaction must not hold its rows from all others.
            "options": f"-c idle_in_transaction_session_timeout={HUNG_MS}",
        },
    }


def bootstrap(admin_dsn: str, database: str, secret: str) -> None:
    """Create or refresh the four roles and the database. Idempotent; needs CREATEROLE and CREATEDB."""
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        for role in ROLES:
            _ensure_role(connection, role, secret)
        exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone()
        if not exists:
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER moorage_owner").format(sql.Identifier(database)))
    with psycopg.connect(admin_dsn, dbname=database, autocommit=True) as connection:
        # A temporary table could stand in for a real one where a trigger or function runs as the owner.
        connection.execute(sql.SQL("REVOKE TEMP ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database)))
        connection.execute("ALTER SCHEMA public OWNER TO moorage_owner")
        connection.execute("GRANT USAGE ON SCHEMA public TO moorage_web, moorage_system, moorage_auditor")
        defaults = "ALTER DEFAULT PRIVILEGES FOR ROLE moorage_owner IN SCHEMA public GRANT"
        connection.execute(f"{defaults} SELECT ON TABLES TO moorage_auditor")
        connection.execute(f"{defaults} USAGE, SELECT ON SEQUENCES TO moorage_web, moorage_system")


def _ensure_role(connection: psycopg.Connection[Any], role: str, secret: str) -> None:
    name = sql.Identifier(f"moorage_{role}")
    exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [f"moorage_{role}"]).fetchone()
    if not exists:
        connection.execute(sql.SQL("CREATE ROLE {}").format(name))
    connection.execute(
        sql.SQL("ALTER ROLE {} LOGIN NOSUPERUSER {} PASSWORD {}").format(
            name,
            sql.SQL("BYPASSRLS" if role == "auditor" else "NOBYPASSRLS"),
            sql.Literal(role_password(secret, role)),
        )
    )
