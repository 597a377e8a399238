"""Pools of spans and credit, parked corrections, one tenant per payment, acts that one person did alone."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0007_token_packages'),
        ('tenants', '0004_rotated_from'),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name='credit',
            name='credit_scope',
        ),
        migrations.RemoveConstraint(
            model_name='operation',
            name='operation_decided',
        ),
        migrations.AddField(
            model_name='billablespan',
            name='pool',
            field=models.TextField(db_default='', default=''),
        ),
        migrations.AddField(
            model_name='quarantine',
            name='corrects',
            field=models.UUIDField(null=True),
        ),
        migrations.AddField(
            model_name='reservedspan',
            name='pool',
            field=models.TextField(db_default='', default=''),
        ),
        migrations.AlterField(
            model_name='usageevent',
            name='corrects',
            field=models.ForeignKey(db_column='corrects', db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='billing.usageevent'),
        ),
        migrations.AddIndex(
            model_name='operation',
            index=models.Index(fields=['asked_by', 'asked_at'], name='operation_of_person'),
        ),
        migrations.AddIndex(
            model_name='quarantine',
            index=models.Index(condition=models.Q(('corrects__isnull', False)), fields=['at'], name='quarantine_corrections'),
        ),
        migrations.AddIndex(
            model_name='usageevent',
            index=models.Index(fields=['tenant', 'started_at'], name='usage_event_month'),
        ),
        migrations.AddIndex(
            model_name='usageevent',
            index=models.Index(condition=models.Q(('corrects__isnull', False)), fields=['corrects'], name='usage_event_corrects'),
        ),
        migrations.AddConstraint(
            model_name='credit',
            constraint=models.CheckConstraint(condition=models.Q(('scope__in', ('model', 'accelerator', 'pool'))), name='credit_scope'),
        ),
        migrations.AddConstraint(
            model_name='ledgertx',
            constraint=models.UniqueConstraint(condition=models.Q(('source_type', 'payment')), fields=('source_id',), name='ledger_tx_payment_once'),
        ),
        migrations.AddConstraint(
            model_name='operation',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('decided_at', None), ('status', 'waiting')), models.Q(('decided_at__isnull', False), ('status__in', ('done', 'refused', 'alone')), models.Q(('decided_by', ''), _negated=True)), _connector='OR'), name='operation_decided'),
        ),
        migrations.AddConstraint(
            model_name='operation',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('status', 'alone'), _negated=True), ('decided_by', models.F('asked_by')), _connector='OR'), name='operation_alone'),
        ),
    ]
