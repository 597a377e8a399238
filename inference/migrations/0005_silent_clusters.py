from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("inference", "0004_clusters_and_nodes"),
    ]

    operations = [
        migrations.AlterField(
            model_name="clusterlisting",
            name="listed_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="clusterlisting",
            name="rests_until",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="clusterlisting",
            name="silent_at",
            field=models.DateTimeField(null=True),
        ),
    ]
