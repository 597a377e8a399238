"""The tables are what the models say, and the database is what the checks demand."""

from django.core.management import call_command

from tests.conftest import as_role


def test_no_migration_is_missing(migrated_database: str) -> None:
    with as_role("owner"):
        call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_every_system_check_holds_on_the_migrated_database(migrated_database: str) -> None:
    with as_role("owner"):
        call_command("check", databases=["default"], fail_level="WARNING")
