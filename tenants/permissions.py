"""Who may do what: one table of actions, held by the roles of people and by the scopes of keys."""

from collections.abc import Collection
from enum import StrEnum

from kernel.problems import FORBIDDEN, Problem
from tenants.models import Role, Scope


class Action(StrEnum):
    """What can be allowed. The `operate` ones count in an operator's tenant alone."""

    READ = "read"
    ENDPOINTS = "endpoints"
    KEYS = "keys"
    BILLING = "billing"
    MEMBERS = "members"
    OPERATE = "operate"
    OPERATE_MONEY = "operate_money"
    OPERATE_TENANTS = "operate_tenants"


ALLOWED: dict[Action, frozenset[str]] = {
    Action.READ: frozenset({*Role, Scope.MANAGE, Scope.BILLING}),
    Action.ENDPOINTS: frozenset({Role.OWNER, Role.DEVELOPER, Scope.MANAGE}),
    Action.KEYS: frozenset({Role.OWNER, Role.DEVELOPER, Scope.MANAGE}),
    Action.BILLING: frozenset({Role.OWNER, Role.FINANCE, Scope.BILLING}),
    Action.MEMBERS: frozenset({Role.OWNER}),
    Action.OPERATE: frozenset(Role),
    Action.OPERATE_MONEY: frozenset({Role.OWNER, Role.FINANCE}),
    Action.OPERATE_TENANTS: frozenset({Role.OWNER}),
}


def may(action: Action, holders: Collection[str]) -> bool:
    """Whether one of these roles or scopes allows it."""
    return not ALLOWED[action].isdisjoint(holders)


def check(action: Action, holders: Collection[str]) -> None:
    """Problem FORBIDDEN, with who may in its sentence and in `allowed`, where none of `holders` does."""
    if may(action, holders):
        return
    roles = [role.value for role in Role if role in ALLOWED[action]]
    scopes = [scope.value for scope in Scope if scope in ALLOWED[action]]
    if set(holders) & set(Role.values):
        detail = f"your role is {', '.join(holders)}; this is for the role {' or '.join(roles)}"
    elif scopes:
        detail = f"this key lacks the scope `{scopes[0]}`; create one with it in the console under API keys"
    else:
        detail = f"no key may do this; the role {' or '.join(roles)} may, in the console"
    raise Problem(FORBIDDEN, detail, extra={"allowed": roles + scopes})


def check_scopes(scopes: Collection[str], holders: Collection[str]) -> None:
    """Problem FORBIDDEN where a key would be allowed what its maker is not."""
    for scope in scopes:
        for action, allowed in ALLOWED.items():
            if scope in allowed and not may(action, holders):
                raise Problem(
                    FORBIDDEN,
                    f"a key gets no scope that its maker lacks: `{scope}` is for the role "
                    f"{' or '.join(role.value for role in Role if role in allowed)}",
                    param="scopes",
                )
