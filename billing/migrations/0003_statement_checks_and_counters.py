"""Counts and sheets checked once per statement, and the open windows of engines' counters."""

from django.db import migrations, models

from tenants.rls import grant

# Ingest inserts hundreds of events in one statement.
USAGE_COUNTS = """
DROP TRIGGER usage_counts ON usage_event;
CREATE OR REPLACE FUNCTION usage_counts() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE wrong jsonb; BEGIN
  SELECT f.counts INTO wrong FROM fresh f CROSS JOIN LATERAL jsonb_each_text(f.counts) c(k, v)
    LEFT JOIN meter m ON m.name = c.k
    WHERE m.name IS NULL OR (f.provenance <> 'correction' AND c.v::bigint < 0)
      OR (f.kind = 'accel') <> (c.k = 'accel_second') LIMIT 1;
  IF FOUND THEN RAISE EXCEPTION 'unknown, negative or misplaced meter in %', wrong; END IF;
  IF EXISTS (SELECT 1 FROM (SELECT DISTINCT sheet, tenant_id FROM fresh) f WHERE NOT EXISTS (
    SELECT 1 FROM price_sheet p WHERE p.sha256 = f.sheet AND (p.tenant_id IS NULL OR p.tenant_id = f.tenant_id))) THEN
    RAISE EXCEPTION 'no such price sheet for this tenant' USING ERRCODE = 'foreign_key_violation'; END IF;
  RETURN NULL; END $$;
CREATE TRIGGER usage_counts AFTER INSERT ON usage_event REFERENCING NEW TABLE AS fresh
  FOR EACH STATEMENT EXECUTE FUNCTION usage_counts()
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_rules")]

    operations = [
        migrations.RunSQL(USAGE_COUNTS, migrations.RunSQL.noop),
        migrations.CreateModel(
            name="EngineCounter",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "pod_uid", "meter", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("pod_uid", models.UUIDField()),
                ("meter", models.TextField()),
                ("since_at", models.DateTimeField()),
                ("until_at", models.DateTimeField()),
                ("value", models.BigIntegerField()),
                ("tokens", models.BigIntegerField()),
                ("resets", models.IntegerField()),
            ],
            options={"db_table": "engine_counter"},
        ),
        grant("engine_counter", system="SELECT, INSERT, UPDATE"),
        migrations.AddIndex(
            "ledgertx",
            models.Index(fields=("source_id",), condition=models.Q(kind="correction"), name="ledger_tx_correction"),
        ),
    ]
