"""Roles and scopes of the permission table, invitations, and counts of failed sign-ins."""

import django.db.models.deletion
from django.db import migrations, models

import kernel.ids
from tenants.rls import FULL, grant, protect

ROLES = [("owner", "Owner"), ("developer", "Developer"), ("finance", "Finance"), ("viewer", "Viewer")]
# Whoever holds an invitation's link may know who invites them to what, one row at a time.
BY_DIGEST = """
CREATE FUNCTION invitation_by_digest(p_digest bytea)
RETURNS TABLE (id uuid, tenant_id uuid, tenant_name text, role text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT i.id, i.tenant_id, t.name, i.role FROM invitation i JOIN tenant t ON t.id = i.tenant_id
  WHERE i.digest = p_digest AND i.expires_at > now() $$;
REVOKE ALL ON FUNCTION invitation_by_digest FROM PUBLIC;
GRANT EXECUTE ON FUNCTION invitation_by_digest TO moorage_web, moorage_system
"""
# Keys that managed could read the money until now; they still may.
BILLING_SCOPE = """
UPDATE api_key SET scopes = scopes || '["billing"]'::jsonb
WHERE scopes @> '["manage"]'::jsonb AND NOT scopes @> '["billing"]'::jsonb
"""


class Migration(migrations.Migration):
    dependencies = [("tenants", "0002_limits_of_keys")]

    operations = [
        migrations.RemoveConstraint(model_name="membership", name="membership_role"),
        migrations.AlterField(
            model_name="membership", name="role", field=models.TextField(choices=ROLES)
        ),
        migrations.AddConstraint(
            model_name="membership",
            constraint=models.CheckConstraint(
                condition=models.Q(("role__in", [name for name, _ in ROLES])), name="membership_role"
            ),
        ),
        migrations.CreateModel(
            name="Invitation",
            fields=[
                ("id", models.UUIDField(default=kernel.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ("role", models.TextField(choices=ROLES)),
                ("note", models.TextField()),
                ("digest", models.BinaryField(max_length=32, unique=True)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("expires_at", models.DateTimeField()),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="invitations", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "db_table": "invitation",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("role__in", [name for name, _ in ROLES])), name="invitation_role"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="SignInCount",
            fields=[
                ("subject", models.TextField(primary_key=True, serialize=False)),
                ("since", models.DateTimeField()),
                ("failures", models.PositiveIntegerField()),
            ],
            options={"db_table": "sign_in_count"},
        ),
        protect("invitation", web=FULL),
        grant("sign_in_count", web=FULL),
        migrations.RunSQL(BY_DIGEST, migrations.RunSQL.noop),
        migrations.RunSQL(BILLING_SCOPE, migrations.RunSQL.noop),
    ]
