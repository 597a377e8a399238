from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("inference", "0003_reservations"),
    ]

    operations = [
        migrations.AddField(
            model_name="clusteraccess",
            name="identity",
            field=models.TextField(default=""),
        ),
        migrations.AddConstraint(
            model_name="clusteraccess",
            constraint=models.UniqueConstraint(
                condition=~models.Q(identity=""), fields=("identity",), name="cluster_access_identity_once"
            ),
        ),
        migrations.AddField(
            model_name="pool",
            name="nodes",
            field=models.JSONField(default=dict),
        ),
    ]
