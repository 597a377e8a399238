"""The provisioning API: each view checks shapes, calls one service or selector, and spells the answer."""

from typing import Any

from django.conf import settings
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.views import APIView

from billing import selectors as billing
from billing.access import access_invoice
from billing.models import Invoice
from controlplane import keys, usage
from controlplane.api import answers
from controlplane.api.authentication import principal
from controlplane.api.idempotency import once
from controlplane.api.renderers import CsvRenderer
from controlplane.api.serializers import (
    ApiKeyCreateIn,
    ApiKeyLimitIn,
    EndpointCapIn,
    EndpointCreateIn,
    EndpointScaleIn,
    EndpointUpdateIn,
    Page,
    Revocation,
    UsageMonth,
)
from controlplane.listings import skus_on_sale
from inference import selectors as inference
from inference import services
from inference.access import access_endpoint
from inference.models import Endpoint
from kernel import ids, money
from kernel.clock import utcnow
from kernel.problems import INVALID_PARAMETER, NOT_FOUND, Problem
from tenants.access import access_api_key
from tenants.selectors import api_key_list_for, tenant_get
from tenants.services import MAX_CAP_PICO

OBJECT = {200: OpenApiTypes.OBJECT}
ACCEPTED = {202: OpenApiTypes.OBJECT}
CSV = {(200, "text/csv"): OpenApiTypes.STR}


def _checked(serializer: type[Serializer[Any]], data: Any) -> dict[str, Any]:
    bound = serializer(data=data)
    bound.is_valid(raise_exception=True)
    return dict(bound.validated_data)


def _cap(text: str, param: str) -> int:
    try:
        pico = money.parse(text)
    except ValueError as error:
        raise Problem(INVALID_PARAMETER, f"{param}: {error}", param=param) from error
    if not 0 <= pico <= MAX_CAP_PICO:
        raise Problem(INVALID_PARAMETER, f"{param} is from 0 to {money.to_string(MAX_CAP_PICO)}", param=param)
    return pico


def _own(request: Request, endpoint_id: str) -> Endpoint:
    return access_endpoint(tenant_id=principal(request).tenant_id, endpoint_id=endpoint_id)


def _own_invoice(request: Request, invoice_id: str) -> Invoice:
    try:
        wanted = ids.decode(ids.INVOICE, invoice_id)
    except ValueError as error:
        raise Problem(NOT_FOUND, f"there is no invoice {invoice_id[:40]!r}") from error
    return access_invoice(tenant_id=principal(request).tenant_id, invoice_id=wanted)


def _changed(request: Request, endpoint: Endpoint) -> Response:
    public_id = answers.endpoint_id(endpoint.id)
    return _accepted(request, inference.endpoint_get(tenant_id=principal(request).tenant_id, endpoint_id=public_id))


def _accepted(request: Request, view: inference.EndpointView) -> Response:
    body = answers.endpoint(view, principal(request).tenant_id)
    return Response(body, status=202, headers={"Location": f"/api/v1/endpoints/{view.id}"})


class ReleaseList(APIView):
    """The catalogue: what can be berthed, on which pools, and the SKUs that are on sale to this tenant."""

    @extend_schema(operation_id="release_list", responses=OBJECT)
    def get(self, request: Request) -> Response:
        views = inference.release_list(settings.REGION)
        tenant = tenant_get(principal(request).tenant_id)
        return Response(
            {"releases": [answers.release(view, skus=skus_on_sale(view.skus.values(), tenant)) for view in views]}
        )


class PriceList(APIView):
    """The price sheets in force for this tenant, its contract's where it has one, as they are hashed."""

    @extend_schema(operation_id="price_list", responses=OBJECT)
    def get(self, request: Request) -> Response:
        tenant, now = tenant_get(principal(request).tenant_id), utcnow()
        known = {sku for view in inference.release_list(settings.REGION) for sku in view.skus.values()}
        sheets = [
            billing.sheet_for(sku=sku, region=settings.REGION, currency=tenant.currency, tenant_id=tenant.id, at=now)
            for sku in skus_on_sale(known, tenant)
        ]
        return Response({"prices": [answers.price(sheet) for sheet in sheets if sheet]})


class EndpointList(APIView):
    """A tenant's endpoints."""

    @extend_schema(operation_id="endpoint_list", responses=OBJECT)
    def get(self, request: Request) -> Response:
        views = inference.endpoint_list_for(principal(request).tenant_id)
        return Response({"endpoints": [answers.endpoint(view, principal(request).tenant_id) for view in views]})

    @extend_schema(operation_id="endpoint_create", request=EndpointCreateIn, responses=ACCEPTED)
    def post(self, request: Request) -> Response:
        def act() -> Response:
            wanted = _checked(EndpointCreateIn, request.data)
            wanted.setdefault("region", settings.REGION)
            made = services.endpoint_create(
                tenant_id=principal(request).tenant_id, actor=principal(request).name, **wanted
            )
            return _accepted(request, inference.endpoint_view(*made))

        return once(request, act)


class EndpointDetail(APIView):
    """One endpoint: its phase, its conditions, its deployment."""

    @extend_schema(operation_id="endpoint_get", responses=OBJECT)
    def get(self, request: Request, endpoint_id: str) -> Response:
        view = inference.endpoint_get(tenant_id=principal(request).tenant_id, endpoint_id=endpoint_id)
        return Response(answers.endpoint(view, principal(request).tenant_id))

    @extend_schema(operation_id="endpoint_delete", responses=ACCEPTED)
    def delete(self, request: Request, endpoint_id: str) -> Response:
        endpoint = services.endpoint_delete(endpoint=_own(request, endpoint_id), actor=principal(request).name)
        return _changed(request, endpoint)


class EndpointScale(APIView):
    """Change how many replicas run, or how many tokens a minute are reserved."""

    @extend_schema(operation_id="endpoint_scale", request=EndpointScaleIn, responses=ACCEPTED)
    def post(self, request: Request, endpoint_id: str) -> Response:
        def act() -> Response:
            wanted = _checked(EndpointScaleIn, request.data)
            change = services.endpoint_reserve if "tpm" in wanted else services.endpoint_scale
            endpoint = _own(request, endpoint_id)
            return _changed(request, change(endpoint=endpoint, actor=principal(request).name, **wanted))

        return once(request, act)


class EndpointUpdate(APIView):
    """Run an endpoint by another recipe, without an end of service where an accelerator is free."""

    @extend_schema(operation_id="endpoint_update", request=EndpointUpdateIn, responses=ACCEPTED)
    def post(self, request: Request, endpoint_id: str) -> Response:
        def act() -> Response:
            wanted = _checked(EndpointUpdateIn, request.data)
            endpoint = _own(request, endpoint_id)
            return _changed(
                request, services.endpoint_update(endpoint=endpoint, actor=principal(request).name, **wanted)
            )

        return once(request, act)


class EndpointPause(APIView):
    """End the engines and the bill, keep the id."""

    @extend_schema(operation_id="endpoint_pause", request=None, responses=ACCEPTED)
    def post(self, request: Request, endpoint_id: str) -> Response:
        def act() -> Response:
            endpoint = _own(request, endpoint_id)
            return _changed(request, services.endpoint_pause(endpoint=endpoint, actor=principal(request).name))

        return once(request, act)


class EndpointResume(APIView):
    """Run a paused endpoint again."""

    @extend_schema(operation_id="endpoint_resume", request=None, responses=ACCEPTED)
    def post(self, request: Request, endpoint_id: str) -> Response:
        def act() -> Response:
            endpoint = _own(request, endpoint_id)
            return _changed(request, services.endpoint_resume(endpoint=endpoint, actor=principal(request).name))

        return once(request, act)


class ApiKeyList(APIView):
    """A tenant's keys; the text of a new one is in the answer of its creation and nowhere else."""

    @extend_schema(operation_id="api_key_list", responses=OBJECT)
    def get(self, request: Request) -> Response:
        return Response({"api_keys": [answers.api_key(key) for key in api_key_list_for(principal(request).tenant_id)]})

    @extend_schema(operation_id="api_key_create", request=ApiKeyCreateIn, responses={201: OpenApiTypes.OBJECT})
    def post(self, request: Request) -> Response:
        def act() -> Response:
            wanted = _checked(ApiKeyCreateIn, request.data)
            key, text = keys.key_create(
                tenant_id=principal(request).tenant_id,
                actor=principal(request).name,
                maker=principal(request).scopes,
                allowed_models=wanted.pop("models"),
                **wanted,
            )
            return Response({**answers.api_key(key), "key": text}, status=201)

        return once(request, act, shown_once="key")


class ApiKeyDetail(APIView):
    """One key by its public id."""

    @extend_schema(operation_id="api_key_revoke", parameters=[Revocation], responses=OBJECT)
    def delete(self, request: Request, public_id: str) -> Response:
        key = access_api_key(tenant_id=principal(request).tenant_id, public_id=public_id)
        cut = _checked(Revocation, request.query_params)["cut"]
        return Response(answers.api_key(keys.key_revoke(key=key, actor=principal(request).name, cut=cut)))

    @extend_schema(operation_id="api_key_limit", request=ApiKeyLimitIn, responses=OBJECT)
    def patch(self, request: Request, public_id: str) -> Response:
        """Change limits; those left out stay."""
        key = access_api_key(tenant_id=principal(request).tenant_id, public_id=public_id)
        limits = _checked(ApiKeyLimitIn, request.data)
        for name in limits.keys() & {"spend_cap", "user_cap"}:
            limits[f"{name}_pico"] = _cap(limits.pop(name), name)
        return Response(answers.api_key(keys.key_limit(key=key, limits=limits, actor=principal(request).name)))


class ApiKeyRotate(APIView):
    """A successor with the same scopes and limits; the old key goes on for a day."""

    @extend_schema(operation_id="api_key_rotate", request=None, responses={201: OpenApiTypes.OBJECT})
    def post(self, request: Request, public_id: str) -> Response:
        def act() -> Response:
            key = access_api_key(tenant_id=principal(request).tenant_id, public_id=public_id)
            successor, text = keys.key_rotate(key=key, actor=principal(request).name, maker=principal(request).scopes)
            return Response({**answers.api_key(successor), "key": text}, status=201)

        return once(request, act, shown_once="key")


class EndpointCap(APIView):
    """What the tenant may spend in a month at an endpoint, its own or a shared one."""

    @extend_schema(operation_id="endpoint_cap", request=EndpointCapIn, responses=OBJECT)
    def put(self, request: Request, endpoint_id: str) -> Response:
        tenant_id, name = principal(request).tenant_id, principal(request).name
        known = (*inference.endpoint_list_for(tenant_id), *inference.endpoint_list_public())
        if endpoint_id not in {view.id for view in known}:
            raise Problem(NOT_FOUND, f"there is no endpoint {endpoint_id[:40]!r}")
        cap_pico = _cap(_checked(EndpointCapIn, request.data)["cap"], "cap")
        keys.endpoint_cap(tenant_id=tenant_id, endpoint_id=endpoint_id, cap_pico=cap_pico, actor=name)
        return Response({"endpoint_id": endpoint_id, "cap": money.to_string(cap_pico)})


class Balance(APIView):
    """A tenant's money, live."""

    @extend_schema(operation_id="balance_get", responses=OBJECT)
    def get(self, request: Request) -> Response:
        tenant_id = principal(request).tenant_id
        return Response(answers.balance(billing.balance_for(tenant_id), billing.credit_list_for(tenant_id)))


class Usage(APIView):
    """Usage events with their rated lines, newest first."""

    @extend_schema(operation_id="usage_list", parameters=[Page], responses=OBJECT)
    def get(self, request: Request) -> Response:
        page = _checked(Page, request.query_params)
        events = billing.usage_list_for(principal(request).tenant_id, endpoint_id=page["endpoint_id"] or None)
        currency = tenant_get(principal(request).tenant_id).currency
        return Response({"events": [answers.usage_event(event, currency) for event in events[: page["limit"]]]})


class LedgerEntries(APIView):
    """Ledger entries, newest first."""

    @extend_schema(operation_id="ledger_entry_list", parameters=[Page], responses=OBJECT)
    def get(self, request: Request) -> Response:
        page = _checked(Page, request.query_params)
        entries = billing.entries_list_for(principal(request).tenant_id)[: page["limit"]]
        return Response({"entries": [answers.ledger_entry(entry) for entry in entries]})


class Invoices(APIView):
    """Invoices with their lines, newest period first; the open period is a draft."""

    @extend_schema(operation_id="invoice_list", responses=OBJECT)
    def get(self, request: Request) -> Response:
        invoices = billing.invoice_list_for(principal(request).tenant_id)
        return Response({"invoices": [answers.invoice(item) for item in invoices]})


class InvoiceDetail(APIView):
    """One invoice."""

    @extend_schema(operation_id="invoice_get", responses=OBJECT)
    def get(self, request: Request, invoice_id: str) -> Response:
        return Response(answers.invoice(_own_invoice(request, invoice_id)))


class InvoiceFile(APIView):
    """The lines of an invoice or credit note as CSV."""

    renderer_classes = (CsvRenderer,)

    @extend_schema(operation_id="invoice_csv", responses=CSV)
    def get(self, request: Request, invoice_id: str) -> Response:
        return Response(billing.invoice_csv(_own_invoice(request, invoice_id)))


class InvoiceFactsFile(APIView):
    """Every rated event behind an invoice as CSV."""

    renderer_classes = (CsvRenderer,)

    @extend_schema(operation_id="invoice_facts_csv", responses=CSV)
    def get(self, request: Request, invoice_id: str) -> Response:
        return Response(billing.invoice_facts_csv(_own_invoice(request, invoice_id)))


class UsageFile(APIView):
    """A month's usage by day, endpoint, key and meter as CSV."""

    renderer_classes = (CsvRenderer,)

    @extend_schema(operation_id="usage_csv", parameters=[UsageMonth], responses=CSV)
    def get(self, request: Request) -> Response:
        asked = _checked(UsageMonth, request.query_params)
        month = asked["month"] or usage.months()[0]
        if month not in usage.months():
            raise Problem(INVALID_PARAMETER, f"month is one of {', '.join(usage.months())}", param="month")
        wanted = usage.wanted(month, endpoint_id=asked["endpoint_id"], key=asked["key"])
        return Response(usage.as_csv(tenant_get(principal(request).tenant_id), wanted))
