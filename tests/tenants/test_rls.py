"""Tenancy is enforced by the database: unset, foreign or raw, a query sees nothing it should not."""

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.utils import ProgrammingError

from kernel.ids import new_id
from kernel.problems import Problem
from tenants import selectors, services
from tenants.models import ApiKey, Tenant
from tenants.rls import tenant_scope
from tests.conftest import as_role


def make_tenant(name: str = "Harbour") -> Tenant:
    return services.tenant_create(name=name, currency="USD")


def visible(sql: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def test_web_sees_no_row_without_a_tenant(database: None) -> None:
    services.api_key_create(tenant_id=make_tenant().id, name="one", actor="t")
    with as_role("web"):
        assert visible("SELECT count(*) FROM api_key") == 0
        assert visible("SELECT count(*) FROM tenant") == 0


def test_web_sees_its_own_tenant_only_and_nothing_after_the_scope(database: None) -> None:
    ours, theirs = make_tenant(), make_tenant("Other")
    services.api_key_create(tenant_id=ours.id, name="ours", actor="t")
    services.api_key_create(tenant_id=theirs.id, name="theirs", actor="t")
    with as_role("web"):
        with tenant_scope(ours.id):
            assert [key.name for key in ApiKey.objects.all()] == ["ours"]
            assert visible("SELECT count(*) FROM tenant") == 1
        assert visible("SELECT count(*) FROM api_key") == 0


def test_web_cannot_write_a_row_of_another_tenant(database: None) -> None:
    ours, theirs = make_tenant(), make_tenant("Other")
    with as_role("web"), pytest.raises(ProgrammingError, match="row-level security"), tenant_scope(ours.id):
        services.api_key_create(tenant_id=theirs.id, name="forged", actor="t")


def test_web_cannot_change_an_audit_row(database: None) -> None:
    tenant = make_tenant()
    with as_role("web"), pytest.raises(ProgrammingError, match="permission denied"), tenant_scope(tenant.id):
        visible("UPDATE audit_log SET actor = 'nobody' RETURNING 1")


def test_the_check_finds_a_table_without_a_policy_and_a_link_that_may_cross_tenants(
    admin_dsn: str, migrated_database: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(migrated_database)["dbname"]
    with psycopg.connect(admin_dsn, dbname=name, autocommit=True) as admin:
        admin.execute("CREATE TABLE stray (tenant_id uuid, key_id uuid REFERENCES api_key)")
        try:
            with as_role("owner"), pytest.raises(Exception, match=r"(?s)stray has tenant_id.*stray.key_id"):
                call_command("check", databases=["default"])
        finally:
            admin.execute("DROP TABLE stray")
    with as_role("owner"):
        call_command("check", databases=["default"])


def test_a_key_is_found_by_its_public_id_before_a_tenant_is_known(database: None) -> None:
    tenant = make_tenant()
    key, text = services.api_key_create(tenant_id=tenant.id, name="k", actor="t", scopes=["manage"])
    with as_role("web"):
        found = selectors.key_credential(key.public_id)
        assert found is not None
        assert (found.tenant_id, found.scopes, found.revoked_at) == (tenant.id, ["manage"], None)
        assert text not in repr(found)
        assert selectors.key_credential("absent000000") is None


def test_revoking_twice_raises_the_version_once(database: None) -> None:
    key, _ = services.api_key_create(tenant_id=make_tenant().id, name="k", actor="t")
    first = services.api_key_revoke(key=key, actor="t")
    second = services.api_key_revoke(key=key, actor="t")
    assert (first.version, second.version) == (2, 2)
    assert first.revoked_at == second.revoked_at


def test_the_audit_chain_holds_and_grows_by_one(database: None) -> None:
    tenant = make_tenant()
    services.audit_write(actor="ann", tenant_id=tenant.id, action="test.acted", detail={"n": 1})
    broken = """SELECT count(*) FROM (
      SELECT prev_hash, hash, lag(hash) OVER w AS p, lag(seq) OVER w AS ps, seq,
        sha256(COALESCE(prev_hash, ''::bytea) || convert_to(concat_ws('|', seq, extract(epoch FROM at), actor,
          tenant_id, action, detail::text), 'UTF8')) AS h
      FROM audit_log WINDOW w AS (ORDER BY seq)) z
      WHERE hash <> h OR prev_hash IS DISTINCT FROM p OR (ps IS NOT NULL AND seq <> ps + 1)"""
    assert visible(broken) == 0


def test_a_duplicate_fact_in_the_outbox_is_one_fact(database: None) -> None:
    from tenants import outbox

    topic = f"test.{new_id()}"
    for _ in range(3):
        outbox.publish(topic=topic, dedupe_key=topic, payload={"a": 1})
    with transaction.atomic():
        rows = outbox.take(topic=topic)
        assert [row.payload for row in rows] == [{"a": 1}]
        outbox.mark(rows)
    with transaction.atomic():
        assert outbox.take(topic=topic) == []


def test_web_cannot_slip_a_temporary_table_under_a_function_of_the_owner(database: None) -> None:
    with as_role("web"), pytest.raises(ProgrammingError, match="permission denied"), connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE audit_log (seq bigint)")
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT proname FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace
               AND NOT 'search_path=public, pg_temp' = ANY (proconfig)"""
        )
        assert cursor.fetchall() == []


def test_web_neither_reads_nor_writes_the_outbox(database: None) -> None:
    with as_role("web"), pytest.raises(ProgrammingError, match="permission denied"):
        visible("SELECT count(*) FROM outbox")


def test_a_change_of_standing_reaches_gateways_that_keep_a_key(database: None) -> None:
    tenant = make_tenant()
    key, _ = services.api_key_create(tenant_id=tenant.id, name="k", actor="t")
    services.standing_set(tenant_id=tenant.id, standing="suspended", actor="t")
    key.refresh_from_db()
    assert key.version == 2


@pytest.mark.parametrize("text", ["a\u200bb", "a\u202eb", "a\x00b", "a\x1b[31m", "\ufeffa", "", "x" * 81])
def test_fault_41_a_name_that_hides_or_turns_what_it_says_is_refused(database: None, text: str) -> None:
    with pytest.raises(Problem) as refusal:
        services.tenant_create(name=text, currency="USD")
    assert refusal.value.param == "name"


def test_fault_41_two_spellings_of_one_name_are_kept_as_one(database: None) -> None:
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    assert services.tenant_create(name=decomposed, currency="USD").name == composed
    made = services.tenant_create(name=" two\u2003 words\n", currency="USD")
    assert made.name == "two words"
