"""Reserved days, rebates and the new meters; what a second operator has to approve."""

import django.db.models.deletion
from django.db import migrations, models

import billing.fields
import kernel.ids
from tenants.rls import protect

METER_ROWS = """
INSERT INTO meter (name, unit, cumulative) VALUES
  ('reasoning', 'token', false), ('ktpm_day', 'kTPM-day', false), ('rebate', 'pico-unit', false)
ON CONFLICT (name) DO NOTHING
"""
# Each kind of event counts its own meters, and only a rebate or a correction counts below zero.
USAGE_COUNTS = """
CREATE OR REPLACE FUNCTION usage_counts() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE wrong jsonb; BEGIN
  SELECT f.counts INTO wrong FROM fresh f CROSS JOIN LATERAL jsonb_each_text(f.counts) c(k, v)
    LEFT JOIN meter m ON m.name = c.k
    WHERE m.name IS NULL OR (f.provenance <> 'correction' AND f.kind <> 'rebate' AND c.v::bigint < 0)
      OR f.kind <> CASE c.k WHEN 'accel_second' THEN 'accel' WHEN 'ktpm_day' THEN 'reserved' WHEN 'rebate' THEN 'rebate'
        ELSE 'tokens' END LIMIT 1;
  IF FOUND THEN RAISE EXCEPTION 'unknown, negative or misplaced meter in %', wrong; END IF;
  IF EXISTS (SELECT 1 FROM (SELECT DISTINCT sheet, tenant_id FROM fresh) f WHERE NOT EXISTS (
    SELECT 1 FROM price_sheet p WHERE p.sha256 = f.sheet AND (p.tenant_id IS NULL OR p.tenant_id = f.tenant_id))) THEN
    RAISE EXCEPTION 'no such price sheet for this tenant' USING ERRCODE = 'foreign_key_violation'; END IF;
  RETURN NULL; END $$
"""
# The one word that a web process has about money coming in: signed text, which the system checks before it credits.
PAYMENT_NOTICE = """
CREATE FUNCTION payment_notice(p_key text, p_header text, p_body text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  INSERT INTO outbox (topic, dedupe_key, payload, created_at)
  SELECT 'payment.notice', p_key, jsonb_build_object('header', p_header, 'body', p_body), clock_timestamp()
  WHERE p_key LIKE 'payment:%' AND length(p_body) <= 20000
  ON CONFLICT DO NOTHING $$;
REVOKE ALL ON FUNCTION payment_notice FROM PUBLIC;
GRANT EXECUTE ON FUNCTION payment_notice TO moorage_web, moorage_system
"""


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0003_statement_checks_and_counters'),
        ('tenants', '0001_initial'),
    ]

    operations = [
        migrations.CreateModel(
            name='Operation',
            fields=[
                ('id', models.UUIDField(default=kernel.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('action', models.TextField()),
                ('arguments', models.JSONField()),
                ('amount', billing.fields.PicoField(decimal_places=0, max_digits=38)),
                ('currency', models.CharField(max_length=3)),
                ('status', models.TextField(db_default='waiting', default='waiting')),
                ('asked_by', models.TextField()),
                ('asked_at', models.DateTimeField(db_default=billing.fields.ClockTimestamp())),
                ('decided_by', models.TextField(db_default='', default='')),
                ('decided_at', models.DateTimeField(null=True)),
            ],
            options={
                'db_table': 'operation',
            },
        ),
        migrations.CreateModel(
            name='ReservedSpan',
            fields=[
                ('pk', models.CompositePrimaryKey('endpoint_id', 'from_at', blank=True, editable=False, primary_key=True, serialize=False)),
                ('endpoint_id', models.UUIDField()),
                ('sku', models.TextField()),
                ('region', models.TextField()),
                ('ktpm', models.BigIntegerField()),
                ('from_at', models.DateTimeField()),
                ('ended_at', models.DateTimeField(null=True)),
                ('due_at', models.DateTimeField()),
                ('finished', models.BooleanField(db_default=False, default=False)),
            ],
            options={
                'db_table': 'reserved_span',
            },
        ),
        migrations.RemoveConstraint(
            model_name='usageevent',
            name='usage_kind',
        ),
        migrations.AddConstraint(
            model_name='usageevent',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ('tokens', 'accel', 'reserved', 'rebate'))), name='usage_kind'),
        ),
        migrations.AddField(
            model_name='operation',
            name='tenant',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to='tenants.tenant'),
        ),
        migrations.AddField(
            model_name='reservedspan',
            name='tenant',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to='tenants.tenant'),
        ),
        migrations.AddConstraint(
            model_name='operation',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('decided_at', None), ('status', 'waiting')), models.Q(('decided_at__isnull', False), ('status__in', ('done', 'refused')), models.Q(('decided_by', ''), _negated=True)), _connector='OR'), name='operation_decided'),
        ),
        migrations.AddConstraint(
            model_name='operation',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('status', 'done'), _negated=True), models.Q(('decided_by', models.F('asked_by')), _negated=True), _connector='OR'), name='operation_two'),
        ),
        migrations.AddIndex(
            model_name='reservedspan',
            index=models.Index(condition=models.Q(('finished', False)), fields=['tenant'], name='reserved_span_running'),
        ),
        migrations.AddConstraint(
            model_name='reservedspan',
            constraint=models.CheckConstraint(condition=models.Q(('ktpm__gt', 0)), name='reserved_span_ktpm'),
        ),
        migrations.RunSQL(METER_ROWS, migrations.RunSQL.noop),
        migrations.RunSQL(USAGE_COUNTS, migrations.RunSQL.noop),
        migrations.RunSQL(PAYMENT_NOTICE, migrations.RunSQL.noop),
        protect("reserved_span", system="SELECT, INSERT, UPDATE"),
        protect("operation", web="", system="SELECT, INSERT, UPDATE"),
    ]
