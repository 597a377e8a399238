"""Routes of the console."""

from django.urls import path
from django.views.i18n import set_language

from controlplane.console.views import (
    billing,
    catalogue,
    endpoints,
    keys,
    members,
    operator,
    overview,
    playground,
    session,
)

app_name = "console"
urlpatterns = [
    path("", overview.overview, name="overview"),
    path("sign-in", session.login, name="login"),
    path("sign-out", session.logout, name="logout"),
    path("account", session.account, name="account"),
    path("invitation/<str:secret>", session.invitation, name="invitation"),
    path("language", set_language, name="language"),
    path("tenant", session.tenant_switch, name="tenant"),
    path("catalogue", catalogue.catalogue, name="catalogue"),
    path("endpoints", endpoints.endpoints, name="endpoints"),
    path("endpoints/new", endpoints.endpoint_new, name="endpoint_new"),
    path("endpoints/quote", endpoints.endpoint_quote, name="endpoint_quote"),
    path("endpoints/<str:endpoint_id>", endpoints.endpoint, name="endpoint"),
    path("endpoints/<str:endpoint_id>/live", endpoints.endpoint_live, name="endpoint_live"),
    path("endpoints/<str:endpoint_id>/scale", endpoints.endpoint_scale, name="endpoint_scale"),
    path("endpoints/<str:endpoint_id>/pause", endpoints.endpoint_pause, name="endpoint_pause"),
    path("endpoints/<str:endpoint_id>/resume", endpoints.endpoint_resume, name="endpoint_resume"),
    path("endpoints/<str:endpoint_id>/delete", endpoints.endpoint_delete, name="endpoint_delete"),
    path("playground", playground.playground, name="playground"),
    path("playground/stream", playground.playground_stream, name="playground_stream"),
    path("keys", keys.keys, name="keys"),
    path("keys/<str:public_id>/revoke", keys.key_revoke, name="key_revoke"),
    path("usage", billing.usage, name="usage"),
    path("billing", billing.billing, name="billing"),
    path("operator/tenants", operator.tenants, name="operator_tenants"),
    path("operator/tenants/<str:tenant_id>", operator.tenant, name="operator_tenant"),
    path("operator/tenants/<str:tenant_id>/money", operator.money, name="operator_money"),
    path("operator/tenants/<str:tenant_id>/quota", operator.quota, name="operator_quota"),
    path("operator/invoices", operator.invoices, name="operator_invoices"),
    path("operator/invoices/<str:invoice_id>", operator.invoice, name="operator_invoice"),
    path("operator/operations/<uuid:operation_id>", operator.operation, name="operator_operation"),
    path("operator/pools", operator.pools, name="operator_pools"),
    path("operator/health", operator.health, name="operator_health"),
    path("members", members.members, name="members"),
    path("members/<int:member_id>/role", members.member_role, name="member_role"),
    path("members/<int:member_id>/remove", members.member_remove, name="member_remove"),
    path("invitations/<uuid:invitation_id>/withdraw", members.invitation_withdraw, name="invitation_withdraw"),
]
