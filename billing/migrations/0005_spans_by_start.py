"""A span of a pod's billable time for each of its starts; what time ahead lacks, and since when."""

import django.db.models.deletion
from django.db import migrations, models

import billing.fields
from tenants.rls import protect

# A pod that never served left a row without a start: it bills nothing.
SPANS_BY_START = """
DELETE FROM billable_span WHERE from_at IS NULL;
ALTER TABLE billable_span
  DROP CONSTRAINT billable_span_pkey,
  ALTER COLUMN from_at SET NOT NULL,
  ADD PRIMARY KEY (pod_uid, from_at)
"""


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0004_reserved_days_and_operations'),
        ('tenants', '0001_initial'),
    ]

    operations = [
        migrations.RunSQL(
            SPANS_BY_START,
            migrations.RunSQL.noop,
            state_operations=[
                migrations.DeleteModel('BillableSpan'),
                migrations.CreateModel(
                    name='BillableSpan',
                    fields=[
                        ('pk', models.CompositePrimaryKey('pod_uid', 'from_at', blank=True, editable=False, primary_key=True, serialize=False)),
                        ('pod_uid', models.UUIDField()),
                        ('deployment_id', models.UUIDField()),
                        ('endpoint_id', models.UUIDField()),
                        ('sku', models.TextField()),
                        ('region', models.TextField()),
                        ('accelerator', models.TextField()),
                        ('accelerator_count', models.IntegerField()),
                        ('from_at', models.DateTimeField()),
                        ('proven_at', models.DateTimeField(null=True)),
                        ('ended_at', models.DateTimeField(null=True)),
                        ('rated_until', models.DateTimeField(null=True)),
                        ('finished', models.BooleanField(db_default=False, default=False)),
                        ('tenant', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to='tenants.tenant')),
                    ],
                    options={
                        'db_table': 'billable_span',
                        'indexes': [models.Index(condition=models.Q(('finished', False)), fields=['deployment_id'], name='billable_span_running')],
                    },
                ),
            ],
        ),
        migrations.CreateModel(
            name='Shortfall',
            fields=[
                ('deployment_id', models.UUIDField(primary_key=True, serialize=False)),
                ('missing_pico', billing.fields.PicoField(decimal_places=0, max_digits=38)),
                ('since_at', models.DateTimeField()),
                ('recorded_at', models.DateTimeField(db_default=billing.fields.ClockTimestamp())),
                ('suspended', models.BooleanField(db_default=False, default=False)),
                ('tenant', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to='tenants.tenant')),
            ],
            options={
                'db_table': 'shortfall',
                'constraints': [models.CheckConstraint(condition=models.Q(('missing_pico__gt', 0)), name='shortfall_missing')],
            },
        ),
        protect('shortfall'),
    ]
