"""What each route asks of the one who calls it, for the console and the API alike.

A route that is missing here is refused to everybody; a test holds the table against the URL resolver.
"""

from collections.abc import Collection

from django.urls import ResolverMatch

from kernel.problems import FORBIDDEN, Problem
from tenants.permissions import Action, check

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# No tenant is needed to get here.
OPEN = frozenset(
    {
        "api:openapi",
        "console:login",
        "console:logout",
        "console:language",
        "console:invitation",
        "console:account",
        "payment-notice",
    }
)
_READ, _ENDPOINTS, _KEYS, _BILLING, _MEMBERS = (
    Action.READ,
    Action.ENDPOINTS,
    Action.KEYS,
    Action.BILLING,
    Action.MEMBERS,
)
# Route → what reading and what writing needs.
GATES: dict[str, tuple[Action, Action]] = {
    "console:overview": (_READ, _READ),
    "console:tenant": (_READ, _READ),
    "console:catalogue": (_READ, _READ),
    "console:catalogue_release": (_READ, _READ),
    "console:prices": (_READ, _READ),
    "console:endpoints": (_READ, _ENDPOINTS),
    "console:endpoint_new": (_ENDPOINTS, _ENDPOINTS),
    "console:endpoint_quote": (_ENDPOINTS, _ENDPOINTS),
    "console:endpoint": (_READ, _ENDPOINTS),
    "console:endpoint_live": (_READ, _ENDPOINTS),
    "console:endpoint_scale": (_ENDPOINTS, _ENDPOINTS),
    "console:endpoint_update": (_ENDPOINTS, _ENDPOINTS),
    "console:endpoint_cap": (_KEYS, _KEYS),
    "console:endpoint_pause": (_ENDPOINTS, _ENDPOINTS),
    "console:endpoint_resume": (_ENDPOINTS, _ENDPOINTS),
    "console:endpoint_delete": (_ENDPOINTS, _ENDPOINTS),
    "console:playground": (_READ, _READ),
    "console:playground_stream": (_READ, _READ),
    "console:keys": (_READ, _KEYS),
    "console:key_revoke": (_KEYS, _KEYS),
    "console:key": (_READ, _KEYS),
    "console:key_rotate": (_KEYS, _KEYS),
    "console:usage": (_READ, _READ),
    "console:usage_file": (_READ, _READ),
    "console:spend": (_READ, _READ),
    "console:billing": (_BILLING, _BILLING),
    "console:billing_invoice": (_BILLING, _BILLING),
    "console:billing_invoice_file": (_BILLING, _BILLING),
    "console:billing_facts_file": (_BILLING, _BILLING),
    "console:billing_line": (_BILLING, _BILLING),
    "console:operator_tenants": (Action.OPERATE, Action.OPERATE_TENANTS),
    "console:operator_tenant": (Action.OPERATE, Action.OPERATE_TENANTS),
    "console:operator_money": (Action.OPERATE_MONEY, Action.OPERATE_MONEY),
    "console:operator_quota": (Action.OPERATE_TENANTS, Action.OPERATE_TENANTS),
    "console:operator_invoices": (Action.OPERATE, Action.OPERATE_MONEY),
    "console:operator_invoice": (Action.OPERATE, Action.OPERATE_MONEY),
    "console:operator_operation": (Action.OPERATE_MONEY, Action.OPERATE_MONEY),
    "console:operator_pools": (Action.OPERATE, Action.OPERATE_TENANTS),
    "console:operator_health": (Action.OPERATE, Action.OPERATE_TENANTS),
    "console:members": (_READ, _MEMBERS),
    "console:member_role": (_MEMBERS, _MEMBERS),
    "console:member_remove": (_MEMBERS, _MEMBERS),
    "console:invitation_withdraw": (_MEMBERS, _MEMBERS),
    "api:releases": (_READ, _READ),
    "api:prices": (_READ, _READ),
    "api:endpoints": (_READ, _ENDPOINTS),
    "api:endpoint": (_READ, _ENDPOINTS),
    "api:endpoint-update": (_READ, _ENDPOINTS),
    "api:endpoint-cap": (_READ, _KEYS),
    "api:endpoint-scale": (_READ, _ENDPOINTS),
    "api:endpoint-pause": (_READ, _ENDPOINTS),
    "api:endpoint-resume": (_READ, _ENDPOINTS),
    "api:api-keys": (_READ, _KEYS),
    "api:api-key": (_READ, _KEYS),
    "api:balance": (_READ, _READ),
    "api:usage": (_READ, _READ),
    "api:ledger-entries": (_BILLING, _BILLING),
    "api:invoices": (_BILLING, _BILLING),
    "api:invoice": (_BILLING, _BILLING),
    "api:invoice-file": (_BILLING, _BILLING),
    "api:invoice-facts-file": (_BILLING, _BILLING),
    "api:usage-file": (_READ, _READ),
    "api:api-key-rotate": (_READ, _KEYS),
}


def pass_gate(match: ResolverMatch, method: str, holders: Collection[str]) -> None:
    """Problem FORBIDDEN where these roles or scopes may not call this route with this method."""
    if match.view_name in OPEN:
        return
    if match.view_name not in GATES:
        raise Problem(FORBIDDEN, "nobody may call this address")
    check(GATES[match.view_name][method not in SAFE_METHODS], holders)
