"""Routes: the console at the root, the provisioning API below /api/v1/."""

from django.urls import include, path

urlpatterns = [
    path("api/v1/", include("controlplane.api.urls")),
    path("", include("controlplane.console.urls")),
]
