"""Scoped credit: accounts that are purses of their own, and holds that are placed on the purses they name."""

import django.db.models.deletion
from django.db import migrations, models

import billing.fields
import kernel.ids
from tenants.rls import composite_fk, protect

# As before, and only from accounts of the purses given, in their order; a gateway's subject names its own.
HOLD_PLACE = """
DROP FUNCTION hold_place(uuid, text, text, int, int, numeric, boolean);
CREATE FUNCTION hold_place(p_tenant uuid, p_currency text, p_subject text, p_generation int, p_transfer int,
                           p_amount numeric, p_whole boolean, p_purses text[] DEFAULT ARRAY['general'])
RETURNS numeric LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE scope text := current_setting('app.tenant', true); a record; h uuid; part numeric; rest numeric := p_amount;
  purses text[] := CASE WHEN p_subject LIKE 'gateway:%' THEN ARRAY[split_part(p_subject, ':', 2)] ELSE p_purses END;
BEGIN
  IF (session_user = 'moorage_web' OR scope <> '')
     AND (NULLIF(scope, '')::uuid IS DISTINCT FROM p_tenant OR p_subject NOT LIKE 'deployment:%') THEN
    RAISE EXCEPTION 'not this tenant''s hold' USING ERRCODE = 'insufficient_privilege'; END IF;
  PERFORM 1 FROM ledger_account WHERE tenant_id = p_tenant AND currency = p_currency
    AND kind IN ('promo', 'prepaid', 'receivable') ORDER BY id FOR UPDATE;
  IF p_whole AND p_amount > (SELECT COALESCE(sum(posted - held - min_available), 0) FROM ledger_account
      WHERE tenant_id = p_tenant AND currency = p_currency AND kind IN ('promo', 'prepaid', 'receivable')
        AND purse = ANY (purses)) THEN
    RETURN 0; END IF;
  FOR a IN SELECT id, posted - held - min_available AS available FROM ledger_account
      WHERE tenant_id = p_tenant AND currency = p_currency AND kind IN ('promo', 'prepaid', 'receivable')
        AND purse = ANY (purses)
      ORDER BY array_position(purses, purse), array_position(ARRAY['promo', 'prepaid', 'receivable'], kind) LOOP
    part := LEAST(a.available, rest);
    CONTINUE WHEN part IS NULL OR part <= 0;
    SELECT id INTO h FROM hold WHERE account_id = a.id AND subject = p_subject AND sealed_at IS NULL;
    IF h IS NULL THEN
      INSERT INTO hold (id, account_id, subject, generation) VALUES (gen_random_uuid(), a.id, p_subject, p_generation)
      RETURNING id INTO h; END IF;
    INSERT INTO hold_move (hold_id, seq, kind, amount, transfer)
      SELECT h, COALESCE(max(seq), 0) + 1, 'place', part, p_transfer FROM hold_move WHERE hold_id = h;
    rest := rest - part;
  END LOOP;
  RETURN p_amount - rest; END $$;
REVOKE ALL ON FUNCTION hold_place FROM PUBLIC;
GRANT EXECUTE ON FUNCTION hold_place TO moorage_web, moorage_system;
GRANT INSERT (purse) ON ledger_account TO moorage_system
"""


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0005_spans_by_start'),
        ('tenants', '0001_initial'),
    ]

    operations = [
        migrations.CreateModel(
            name='Credit',
            fields=[
                ('id', models.UUIDField(default=kernel.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('scope', models.TextField()),
                ('value', models.TextField()),
                ('amount', billing.fields.PicoField(decimal_places=0, max_digits=38)),
                ('expires_at', models.DateTimeField()),
            ],
            options={
                'db_table': 'credit',
            },
        ),
        migrations.RemoveConstraint(
            model_name='ledgeraccount',
            name='ledger_account_once',
        ),
        migrations.AddField(
            model_name='ledgeraccount',
            name='purse',
            field=models.TextField(db_default='general', default='general'),
        ),
        migrations.AddConstraint(
            model_name='ledgeraccount',
            constraint=models.UniqueConstraint(fields=('tenant', 'currency', 'kind', 'purse'), name='ledger_account_once', nulls_distinct=False),
        ),
        migrations.AddField(
            model_name='credit',
            name='account',
            field=models.OneToOneField(db_constraint=False, on_delete=django.db.models.deletion.PROTECT, related_name='credit_of', to='billing.ledgeraccount'),
        ),
        migrations.AddField(
            model_name='credit',
            name='tenant',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to='tenants.tenant'),
        ),
        migrations.AddField(
            model_name='credit',
            name='tx',
            field=models.OneToOneField(db_constraint=False, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='billing.ledgertx'),
        ),
        migrations.AddConstraint(
            model_name='credit',
            constraint=models.CheckConstraint(condition=models.Q(('scope__in', ('model', 'accelerator'))), name='credit_scope'),
        ),
        migrations.RunSQL(HOLD_PLACE, migrations.RunSQL.noop),
        composite_fk("credit", "tx_id", "ledger_tx"),
        protect("credit", system="SELECT, INSERT"),
    ]
