"""ASGI entry: the console and the provisioning API."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
os.environ.setdefault("MOORAGE_ROLE", "web")
application = get_asgi_application()
