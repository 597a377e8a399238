"""Reservations: a deployment without engines keeps tokens a minute of a shared one. Updates: another recipe."""

import django.db.models.deletion
from django.db import migrations, models

# What is reserved of a shared deployment by all tenants, of whom a web session sees one alone. With the lock,
# nobody else reserves of it until the transaction ends.
RESERVED_TPM = """
CREATE FUNCTION reserved_tpm(p_carrier uuid, p_lock boolean) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$ BEGIN
  IF p_lock THEN PERFORM 1 FROM deployment WHERE id = p_carrier FOR UPDATE; END IF;
  RETURN (SELECT COALESCE(sum(d.tpm), 0) FROM deployment d JOIN endpoint e ON e.id = d.endpoint_id
    WHERE d.carrier_id = p_carrier AND e.archived_at IS NULL);
END $$;
REVOKE ALL ON FUNCTION reserved_tpm FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reserved_tpm TO moorage_web, moorage_system
"""
# A reservation rides on engines that everybody may call, of its own release and region, and never on another
# tenant's.
RIDES_ON_PUBLIC = """
CREATE FUNCTION deployment_rides() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$ BEGIN
  IF NOT EXISTS (SELECT 1 FROM deployment d JOIN endpoint of ON of.id = d.endpoint_id
      JOIN endpoint own ON own.id = NEW.endpoint_id
      WHERE d.id = NEW.carrier_id AND of.visibility = 'public' AND of.release = own.release
        AND of.region = own.region AND own.rung = 'reserved') THEN
    RAISE EXCEPTION 'a deployment rides on public engines of its release and region alone'
      USING ERRCODE = 'foreign_key_violation'; END IF;
  RETURN NEW; END $$;
CREATE TRIGGER deployment_rides BEFORE INSERT OR UPDATE OF carrier_id ON deployment
  FOR EACH ROW WHEN (NEW.carrier_id IS NOT NULL) EXECUTE FUNCTION deployment_rides()
"""


class Migration(migrations.Migration):

    dependencies = [
        ('inference', '0002_cluster_access'),
    ]

    operations = [
        migrations.AddField(
            model_name='deployment',
            name='carrier',
            field=models.ForeignKey(db_constraint=False, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='riders', to='inference.deployment'),
        ),
        migrations.AddField(
            model_name='deployment',
            name='tpm',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name='deployment',
            name='metered_ktpm',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name='deployment',
            name='metered_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddConstraint(
            model_name='deployment',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('carrier__isnull', True), ('tpm', 0)), models.Q(('carrier__isnull', False), ('tpm__gt', 0)), _connector='OR'), name='deployment_rides_for_tpm'),
        ),
        migrations.RunSQL("GRANT UPDATE (tpm, recipe) ON deployment TO moorage_web", migrations.RunSQL.noop),
        migrations.RunSQL(RIDES_ON_PUBLIC, migrations.RunSQL.noop),
        migrations.RunSQL(RESERVED_TPM, migrations.RunSQL.noop),
    ]
