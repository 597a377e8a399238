"""The playground page and its stream."""

import json

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.http import require_POST, require_safe

from controlplane.console import playground as stream
from controlplane.console.pages import TenantRequest, page, show
from controlplane.console.queries import endpoint_choices
from kernel.problems import INVALID_API_KEY, INVALID_JSON, UNAUTHENTICATED, Problem


@require_safe
@page
def playground(request: TenantRequest) -> HttpResponse:
    """A form that streams; `?endpoint=` chooses one beforehand."""
    context = {"endpoints": endpoint_choices(request.tenant), "chosen": request.GET.get("endpoint", "")}
    return show(request, "console/playground.html", context)


@require_POST
def playground_stream(request: HttpRequest) -> JsonResponse | StreamingHttpResponse:
    """POST JSON {model, messages, max_tokens, temperature} with the key as bearer; answers server-sent events."""
    if getattr(request, "tenant", None) is None:
        return _refuse(Problem(UNAUTHENTICATED, "sign in again"))
    authorization = request.headers.get("Authorization", "")
    if not authorization.isascii():
        return _refuse(Problem(INVALID_API_KEY, "this is no Moorage API key; copy it whole, it starts with moorage_"))
    try:
        body = stream.question(json.loads(request.body))
    except (ValueError, TypeError, RecursionError, RequestDataTooBig):
        return _refuse(Problem(INVALID_JSON, "the body is a JSON object, not nested too deeply and below 2.5 MB"))
    events = stream.relay(authorization, body)
    answer = StreamingHttpResponse(events, content_type="text/event-stream")
    answer["Cache-Control"] = "no-store"
    answer["X-Accel-Buffering"] = "no"
    return answer


def _refuse(problem: Problem) -> JsonResponse:
    return JsonResponse(problem.as_openai(), status=problem.type.status)
