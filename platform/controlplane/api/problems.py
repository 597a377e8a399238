"""problem+json (RFC 9457) for everything that the API refuses."""

import logging
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.http import Http404, HttpResponse
from rest_framework import exceptions
from rest_framework.response import Response

from kernel import problems
from kernel.pricing import canonical
from kernel.problems import Problem

log = logging.getLogger(__name__)
CONTENT_TYPE = "application/problem+json"
_BY_STATUS = {
    400: problems.INVALID_PARAMETER,
    401: problems.UNAUTHENTICATED,
    403: problems.FORBIDDEN,
    404: problems.NOT_FOUND,
    405: problems.METHOD_NOT_ALLOWED,
    406: problems.NOT_ACCEPTABLE,
    415: problems.UNSUPPORTED_MEDIA_TYPE,
}


def problem_response(problem: Problem) -> HttpResponse:
    """The problem as a plain Django response."""
    return HttpResponse(
        canonical(problem.as_rfc9457()),
        status=problem.type.status,
        content_type=CONTENT_TYPE,
        headers=_headers(problem),
    )


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response:
    """Every exception of a view as problem+json; an unforeseen one is logged and says nothing."""
    problem = _problem(exc)
    if problem.type is problems.INTERNAL:
        log.error("unhandled in %s", context["view"].__class__.__name__, exc_info=exc)
    return Response(
        problem.as_rfc9457(),
        status=problem.type.status,
        content_type=CONTENT_TYPE,
        headers=_headers(problem),
    )


def _headers(problem: Problem) -> dict[str, str]:
    headers = {}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    if problem.type.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="moorage"'
    return headers


def _problem(exc: Exception) -> Problem:
    if isinstance(exc, Problem):
        return exc
    if isinstance(exc, Http404):
        return Problem(problems.NOT_FOUND, "there is nothing at this address")
    if isinstance(exc, RequestDataTooBig):
        return Problem(problems.BODY_TOO_LARGE, "the body is larger than 2.5 MB; send less")
    if isinstance(exc, RecursionError | UnicodeEncodeError):
        return Problem(problems.INVALID_JSON, "the body is nested too deeply or holds half a character")
    if isinstance(exc, exceptions.ParseError):
        return Problem(problems.INVALID_JSON, str(exc.detail))
    if isinstance(exc, exceptions.ValidationError):
        param, sentence = _first_error(exc.detail)
        return Problem(problems.INVALID_PARAMETER, f"{param}: {sentence}" if param else sentence, param=param)
    if isinstance(exc, exceptions.APIException) and exc.status_code in _BY_STATUS:
        return Problem(_BY_STATUS[exc.status_code], str(exc.detail))
    return Problem(problems.INTERNAL, "something broke on our side; it is logged, please try again")


def _first_error(detail: Any) -> tuple[str | None, str]:
    """The first field that a serializer refused, with its sentence."""
    if isinstance(detail, dict):
        field, errors = next(iter(detail.items()))
        inner, sentence = _first_error(errors)
        return (f"{field}.{inner}" if inner else str(field)), sentence
    if isinstance(detail, list):
        return _first_error(detail[0])
    return None, str(detail)
