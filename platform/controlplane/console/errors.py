"""Error pages in the console's look; the root URLconf names these as its handlers."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """403: the role does not allow it."""
    return render(request, "console/403.html", status=403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """404: absent, or another tenant's."""
    return render(request, "console/404.html", status=404)


def broken(request: HttpRequest) -> HttpResponse:
    """500: the page depends on nothing that may be broken."""
    return render(request, "console/500.html", status=500)


def csrf_refused(request: HttpRequest, reason: str = "") -> HttpResponse:
    """What settings.CSRF_FAILURE_VIEW shows: the form was stale or came from another site."""
    return render(request, "console/403_form.html", status=403)
