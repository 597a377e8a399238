"""Routes: the console at the root, the provisioning API below /api/v1/."""

from django.urls import include, path

from controlplane.api import webhooks

urlpatterns = [
    path("api/v1/", include("controlplane.api.urls")),
    path("webhooks/payments", webhooks.payment_notice, name="payment-notice"),
    path("", include("controlplane.console.urls")),
]

handler400 = "controlplane.console.errors.malformed"
handler403 = "controlplane.console.errors.forbidden"
handler404 = "controlplane.console.errors.not_found"
handler500 = "controlplane.console.errors.broken"
