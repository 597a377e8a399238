"""Settings of the test run: the product's own, with a fixed secret and no connection pool."""

import os

os.environ.setdefault("MOORAGE_SECRET_KEY", "tests")

from controlplane.settings import *  # noqa: F403
from controlplane.settings import DATABASES

DATABASES["default"]["OPTIONS"] = {}
DATABASES["system"]["OPTIONS"] = {"options": "-c role=moorage_system"}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
