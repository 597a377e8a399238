from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("tenants", "0003_members_and_sign_in")]

    operations = [migrations.AddField("apikey", "rotated_from", models.UUIDField(null=True))]
