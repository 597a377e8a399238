"""What the root URLconf answers with when no view does: problem+json under /api/, pages in the console's look else."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from controlplane.api.problems import problem_response
from kernel.problems import FORBIDDEN, INTERNAL, INVALID_PARAMETER, NOT_FOUND, Problem, ProblemType

API_PREFIX = "/api/"


def malformed(request: HttpRequest, exception: Exception) -> HttpResponse:
    """400: the request itself cannot be read."""
    return _answer(request, INVALID_PARAMETER, "the request cannot be read; send fewer fields or a smaller body")


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """403: the role does not allow it."""
    return _answer(request, FORBIDDEN, "this is not allowed")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """404: absent, or another tenant's."""
    return _answer(request, NOT_FOUND, "there is nothing at this address; /api/v1/openapi.json lists what there is")


def broken(request: HttpRequest) -> HttpResponse:
    """500: the page depends on nothing that may be broken."""
    return _answer(request, INTERNAL, "something broke on our side; it is logged, please try again")


def csrf_refused(request: HttpRequest, reason: str = "") -> HttpResponse:
    """What settings.CSRF_FAILURE_VIEW shows: the form was stale or came from another site."""
    return render(request, "console/403_form.html", status=403)


def _answer(request: HttpRequest, kind: ProblemType, sentence: str) -> HttpResponse:
    if request.path.startswith(API_PREFIX):
        return problem_response(Problem(kind, sentence))
    return render(request, f"console/{kind.status}.html", status=kind.status)
