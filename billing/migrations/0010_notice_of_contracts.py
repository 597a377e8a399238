"""A tenant's first own price is a change of price where there is a public one: it needs the same notice."""

from django.db import migrations

SHEET_AHEAD = """
CREATE OR REPLACE FUNCTION sheet_ahead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.effective_from < clock_timestamp() + interval '10 minutes' AND EXISTS (
    SELECT 1 FROM price_sheet p WHERE (p.sku, p.region, p.currency) = (NEW.sku, NEW.region, NEW.currency)
      AND (p.tenant_id IS NULL OR p.tenant_id = NEW.tenant_id)) THEN
    RAISE EXCEPTION 'a price change is published ten minutes ahead'; END IF;
  RETURN NEW; END $$
"""


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0009_end_users'),
    ]

    operations = [
        migrations.RunSQL(SHEET_AHEAD, migrations.RunSQL.noop),
    ]
