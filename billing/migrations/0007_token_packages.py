"""Token packages, and the meter that charges them."""

import django.db.models.deletion
from django.db import migrations, models

import billing.fields
import kernel.ids
from tenants.rls import protect

METER_ROW = "INSERT INTO meter (name, unit) VALUES ('package', 'pico-unit') ON CONFLICT (name) DO NOTHING"
# As before, with packages beside rebates.
USAGE_COUNTS = """
CREATE OR REPLACE FUNCTION usage_counts() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE wrong jsonb; BEGIN
  SELECT f.counts INTO wrong FROM fresh f CROSS JOIN LATERAL jsonb_each_text(f.counts) c(k, v)
    LEFT JOIN meter m ON m.name = c.k
    WHERE m.name IS NULL OR (f.provenance <> 'correction' AND c.k <> 'rebate' AND c.v::bigint < 0)
      OR f.kind <> CASE WHEN c.k = 'accel_second' THEN 'accel' WHEN c.k = 'ktpm_day' THEN 'reserved'
        WHEN c.k IN ('rebate', 'package') THEN 'rebate' ELSE 'tokens' END LIMIT 1;
  IF FOUND THEN RAISE EXCEPTION 'unknown, negative or misplaced meter in %', wrong; END IF;
  IF EXISTS (SELECT 1 FROM (SELECT DISTINCT sheet, tenant_id FROM fresh) f WHERE NOT EXISTS (
    SELECT 1 FROM price_sheet p WHERE p.sha256 = f.sheet AND (p.tenant_id IS NULL OR p.tenant_id = f.tenant_id))) THEN
    RAISE EXCEPTION 'no such price sheet for this tenant' USING ERRCODE = 'foreign_key_violation'; END IF;
  RETURN NULL; END $$
"""


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0006_scoped_credit'),
        ('tenants', '0003_members_and_sign_in'),
    ]

    operations = [
        migrations.CreateModel(
            name='TokenPackage',
            fields=[
                ('id', models.UUIDField(default=kernel.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('idem_key', models.TextField()),
                ('sku', models.TextField()),
                ('region', models.TextField()),
                ('currency', models.CharField(max_length=3)),
                ('name', models.TextField()),
                ('tokens', models.BigIntegerField()),
                ('price', billing.fields.PicoField(decimal_places=0, max_digits=38)),
                ('from_at', models.DateTimeField()),
                ('until_at', models.DateTimeField()),
                ('tenant', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to='tenants.tenant')),
            ],
            options={
                'db_table': 'token_package',
                'constraints': [models.UniqueConstraint(fields=('tenant', 'idem_key'), name='token_package_once')],
            },
        ),
        migrations.RunSQL(METER_ROW, migrations.RunSQL.noop),
        migrations.RunSQL(USAGE_COUNTS, migrations.RunSQL.noop),
        protect("token_package", system="SELECT, INSERT"),
    ]
