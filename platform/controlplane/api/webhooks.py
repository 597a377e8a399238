"""Webhooks that others call: a payment provider's notices, believed by their signature alone."""

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from billing import payments
from controlplane.api.problems import problem_response
from kernel.problems import BODY_TOO_LARGE, Problem

SIGNATURE = "Payment-Signature"


@csrf_exempt
@require_POST
def payment_notice(request: HttpRequest) -> HttpResponse:
    """204 once the notice is kept, also when it was kept before; the money follows within seconds."""
    if len(request.body) > payments.MAX_BODY_BYTES:
        return problem_response(Problem(BODY_TOO_LARGE, f"a notice has at most {payments.MAX_BODY_BYTES} bytes"))
    try:
        payments.notice_keep(header=request.headers.get(SIGNATURE, ""), body=request.body)
    except Problem as problem:
        return problem_response(problem)
    return HttpResponse(status=204)
