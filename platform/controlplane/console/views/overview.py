"""The first page: money, endpoints, what runs."""

from typing import Any

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from billing.selectors import balance_for
from controlplane.console import api_calls
from controlplane.console.pages import TenantRequest, page, show
from controlplane.console.queries import EndpointRow, endpoint_rows
from tenants.models import Standing


@require_safe
@page
def overview(request: TenantRequest) -> HttpResponse:
    """Balance, this month's spend, what runs even when idle, and the endpoints."""
    rows = endpoint_rows(request.tenant)
    context = _spend(request, rows) | {
        "endpoints": rows,
        "suspended": request.tenant.standing == Standing.SUSPENDED,
        "api_calls": [api_calls.example_endpoint(request)],
    }
    return show(request, "console/overview.html", context)


@require_safe
@page
def spend(request: TenantRequest) -> HttpResponse:
    """The money of the first page, which it polls."""
    return render(request, "console/parts/spend.html", _spend(request, endpoint_rows(request.tenant)))


def _spend(request: TenantRequest, rows: list[EndpointRow]) -> dict[str, Any]:
    return {
        "currency": request.tenant.currency,
        "balance": balance_for(request.tenant.id),
        "running_day": sum(row.running_day for row in rows),
    }
