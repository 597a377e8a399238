"""Routes of the provisioning API."""

from django.urls import path
from drf_spectacular.views import SpectacularJSONAPIView

from controlplane.api import views

app_name = "api"
urlpatterns = [
    path("openapi.json", SpectacularJSONAPIView.as_view(), name="openapi"),
    path("releases", views.ReleaseList.as_view(), name="releases"),
    path("prices", views.PriceList.as_view(), name="prices"),
    path("endpoints", views.EndpointList.as_view(), name="endpoints"),
    path("endpoints/<str:endpoint_id>", views.EndpointDetail.as_view(), name="endpoint"),
    path("endpoints/<str:endpoint_id>/scale", views.EndpointScale.as_view(), name="endpoint-scale"),
    path("endpoints/<str:endpoint_id>/update", views.EndpointUpdate.as_view(), name="endpoint-update"),
    path("endpoints/<str:endpoint_id>/pause", views.EndpointPause.as_view(), name="endpoint-pause"),
    path("endpoints/<str:endpoint_id>/resume", views.EndpointResume.as_view(), name="endpoint-resume"),
    path("endpoints/<str:endpoint_id>/cap", views.EndpointCap.as_view(), name="endpoint-cap"),
    path("api-keys", views.ApiKeyList.as_view(), name="api-keys"),
    path("api-keys/<str:public_id>", views.ApiKeyDetail.as_view(), name="api-key"),
    path("api-keys/<str:public_id>/rotate", views.ApiKeyRotate.as_view(), name="api-key-rotate"),
    path("balance", views.Balance.as_view(), name="balance"),
    path("usage.csv", views.UsageFile.as_view(), name="usage-file"),
    path("usage", views.Usage.as_view(), name="usage"),
    path("ledger/entries", views.LedgerEntries.as_view(), name="ledger-entries"),
    path("invoices", views.Invoices.as_view(), name="invoices"),
    path("invoices/<str:invoice_id>.csv", views.InvoiceFile.as_view(), name="invoice-file"),
    path("invoices/<str:invoice_id>/facts.csv", views.InvoiceFactsFile.as_view(), name="invoice-facts-file"),
    path("invoices/<str:invoice_id>", views.InvoiceDetail.as_view(), name="invoice"),
]
