"""How much: meters, ingest, prices, ledger, holds, invoices."""

from django.apps import AppConfig


class BillingConfig(AppConfig):
    name = "billing"
