from django.db import migrations, models

from tenants.rls import grant


class Migration(migrations.Migration):
    dependencies = [
        ("inference", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="ClusterAccess",
            fields=[
                ("name", models.TextField(primary_key=True, serialize=False)),
                ("region", models.TextField(unique=True)),
                ("sealed", models.BinaryField()),
            ],
            options={"db_table": "cluster_access"},
        ),
        migrations.AddField(
            model_name="deployment",
            name="owned",
            field=models.TextField(default=""),
        ),
        grant("cluster_access"),
    ]
