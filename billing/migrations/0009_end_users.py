"""Whose end user a request was for, as the gateways' digest: what a cap per end user is counted by."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0008_pools_and_parked_corrections'),
    ]

    operations = [
        migrations.AddField(
            model_name='usageevent',
            name='end_user',
            field=models.TextField(db_default='', default=''),
        ),
    ]
