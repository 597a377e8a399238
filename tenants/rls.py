"""Tenancy in the database: the session's tenant, and the migration operations that enforce it.

A web process sees rows only inside `tenant_scope`; the setting is transaction-local, so a pooled
connection never carries it on. Once unset it reads as '' and not NULL, hence NULLIF.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from django.db import connection, transaction
from django.db.migrations import RunSQL

CURRENT_TENANT = "NULLIF(current_setting('app.tenant', true), '')::uuid"
CURRENT_USER = "NULLIF(current_setting('app.user', true), '')::int"
FULL = "SELECT, INSERT, UPDATE, DELETE"
APPEND = "SELECT, INSERT"
READ = "SELECT"


@contextmanager
def tenant_scope(tenant_id: UUID | None, *, user_id: int | None = None) -> Iterator[None]:
    """One transaction that sees this tenant's rows (and this user's memberships)."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('app.tenant', %s, true), set_config('app.user', %s, true)",
            [str(tenant_id or ""), str(user_id or "")],
        )
        yield


def protect(
    table: str,
    *,
    web: str = READ,
    system: str = FULL,
    using: str = f"tenant_id = {CURRENT_TENANT}",
    also_read: str | None = None,
) -> RunSQL:
    """FORCE row level security: web by `using`, owner (triggers) and system every row, auditor by role.

    `web` and `system` are the privileges granted; an append-only table grants APPEND. `also_read`
    widens what web may SELECT (public rows).
    """
    read = f"({using}) OR ({also_read})" if also_read else using
    statements = [
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY web_read ON {table} FOR SELECT TO moorage_web USING ({read})",
        f"CREATE POLICY system_all ON {table} TO moorage_system, moorage_owner USING (true)",
        f"GRANT {system} ON {table} TO moorage_system",
    ]
    if web:
        statements.append(f"GRANT {web} ON {table} TO moorage_web")
    for verb, clause in (("INSERT", "WITH CHECK"), ("UPDATE", "USING"), ("DELETE", "USING")):
        if verb in web:
            statements.append(
                f"CREATE POLICY web_{verb.lower()} ON {table} FOR {verb} TO moorage_web {clause} ({using})"
            )
    return RunSQL(";\n".join(statements), RunSQL.noop)


def grant(table: str, *, web: str = "", system: str = FULL) -> RunSQL:
    """Privileges on a table without a tenant."""
    statements = [f"GRANT {system} ON {table} TO moorage_system"] if system else []
    if web:
        statements.append(f"GRANT {web} ON {table} TO moorage_web")
    return RunSQL(";\n".join(statements), RunSQL.noop)


def composite_fk(table: str, column: str, target: str, target_column: str = "id") -> RunSQL:
    """A foreign key that carries the tenant: (tenant_id, column) references target (tenant_id, id).

    The target needs a unique constraint over (tenant_id, id).
    """
    return RunSQL(
        f"ALTER TABLE {table} ADD CONSTRAINT {table}_{column}_same_tenant FOREIGN KEY (tenant_id, {column}) "
        f"REFERENCES {target} (tenant_id, {target_column}) DEFERRABLE INITIALLY DEFERRED",
        RunSQL.noop,
    )


def append_only(table: str) -> RunSQL:
    """Triggers that refuse UPDATE, DELETE and TRUNCATE. `forbid()` comes with the first migration."""
    return RunSQL(
        f"""CREATE TRIGGER ao BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION forbid();
        CREATE TRIGGER ao_t BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION forbid()""",
        RunSQL.noop,
    )
