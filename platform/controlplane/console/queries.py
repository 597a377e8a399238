"""What the endpoint pages show: inference's views joined with billing's prices and the console's words."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _

from controlplane.console import words
from controlplane.console.prices import DAY_S, reserved_day_cost, sheet_now, time_cost
from controlplane.console.words import Word
from inference.catalogue_files import catalogue
from inference.core import facts
from inference.core.words import Phase, ReplicaState, Rung
from inference.models import Observed, Replica
from inference.selectors import EndpointView, endpoint_get, endpoint_list_for, endpoint_list_public
from k8s.observe import ObservedPod
from tenants.models import Tenant

CALLABLE = {Phase.RUNNING, Phase.DEGRADED, Phase.UPDATING, Phase.UPDATE_FAILED}


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """An endpoint with its words and its price. `day_of_one` is what one replica, or the whole reservation,
    costs a day, in pico-units, None for an endpoint that is paid by the token or has no price."""

    view: EndpointView
    owned: bool
    title: str
    is_test: bool
    currency: str
    day_of_one: int | None

    @property
    def url(self) -> str:
        """Its page."""
        return reverse("console:endpoint", args=[self.view.id])

    @property
    def model(self) -> str:
        """What a request puts into `model`: a shared endpoint goes by its name."""
        return self.view.name if self.per_token else self.view.id

    @property
    def phase(self) -> Word:
        """The customer's word for its state."""
        return words.PHASES[self.view.phase]

    @property
    def rung(self) -> str | Promise:
        """How it is paid."""
        return words.RUNGS[self.view.rung]

    @property
    def per_token(self) -> bool:
        """Tokens are paid, not time."""
        return self.view.rung == Rung.SHARED

    @property
    def is_reserved(self) -> bool:
        """Room on shared engines is paid, by the day."""
        return self.view.rung == Rung.RESERVED

    @property
    def other_recipes(self) -> list[str]:
        """What could take the place of its recipe, replica for replica."""
        return [
            recipe.id
            for recipe in catalogue().recipes_of(self.view.release)
            if recipe.id != self.view.recipe
            and recipe.cards == self.view.accelerators
            and self.view.accelerator in recipe.accelerators
        ]

    @property
    def callable(self) -> bool:
        """It answers requests now."""
        return self.view.phase in CALLABLE

    @property
    def wanted(self) -> int:
        """Replicas that the customer wants now."""
        return 0 if self.is_stopped or self.is_leaving else self.view.replicas

    @property
    def idle_day(self) -> int | None:
        """A day of the wanted replicas, or of the reservation, without a request."""
        if self.is_reserved:
            return 0 if self.is_leaving else self.day_of_one
        return None if self.day_of_one is None else self.day_of_one * self.wanted

    @property
    def running_day(self) -> int:
        """A day of the replicas that serve now, or of the reservation."""
        if self.is_reserved:
            return self.idle_day or 0
        return (self.day_of_one or 0) * self.view.serving

    @property
    def is_stopped(self) -> bool:
        """Paused by its owner."""
        return self.view.paused_at is not None

    @property
    def is_leaving(self) -> bool:
        """Its delete was asked for."""
        return self.view.deletion_requested_at is not None


@dataclass(frozen=True, slots=True)
class ConditionRow:
    """One step of the checklist: `text` is translated, `detail` is the platform's own sentence."""

    label: str | Promise
    word: Word
    text: str | Promise
    reason: str
    detail: str
    at: datetime


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One pod of the endpoint."""

    pod: ObservedPod
    word: Word
    text: str | Promise


@dataclass(frozen=True, slots=True)
class Live:
    """What the endpoint's page polls; `every_s` None: nothing will change any more."""

    row: EndpointRow
    sentence: str
    conditions: tuple[ConditionRow, ...]
    replicas: tuple[ReplicaRow, ...]
    every_s: int | None


def endpoint_rows(tenant: Tenant) -> list[EndpointRow]:
    """The tenant's endpoints, newest first."""
    return [_row(tenant, view) for view in endpoint_list_for(tenant.id)]


def endpoint_choices(tenant: Tenant) -> list[EndpointRow]:
    """What the tenant can call now: its own endpoints and the operator's shared ones."""
    own = endpoint_rows(tenant)
    known = {row.view.id for row in own}
    shared = [_row(tenant, view) for view in endpoint_list_public() if view.id not in known]
    return [row for row in own + shared if row.callable]


def endpoint_row(tenant: Tenant, endpoint_id: str) -> EndpointRow:
    """One endpoint that the tenant may see. Problem NOT_FOUND for every other id."""
    return _row(tenant, endpoint_get(tenant_id=tenant.id, endpoint_id=endpoint_id))


def live(row: EndpointRow) -> Live:
    """The state of an endpoint now, as a checklist with its replicas."""
    conditions = _checklist(row.view.conditions, told=row.owned)
    done = sum(item.word is words.DONE for item in conditions)
    sentence = _("%(phase)s: %(done)s of %(all)s steps done, %(serving)s of %(wanted)s replicas serve.") % {
        "phase": row.phase.label,
        "done": done,
        "all": len(conditions),
        "serving": row.view.serving,
        "wanted": row.wanted,
    }
    replicas = _replicas(row.view.deployment_id) if row.owned else ()
    return Live(row, sentence, conditions, replicas, words.POLL_S.get(row.view.phase))


def _row(tenant: Tenant, view: EndpointView) -> EndpointRow:
    release = catalogue().releases.get(view.release)
    sheet = None if view.rung == Rung.SHARED else sheet_now(tenant, view.sku, view.region)
    return EndpointRow(
        view=view,
        owned=view.tenant_id == tenant.id,
        title=release.repo if release else view.release,
        is_test=release is not None and release.test,
        currency=tenant.currency,
        day_of_one=(reserved_day_cost(sheet, view.tpm) if view.tpm else time_cost(sheet, DAY_S * view.accelerators)),
    )


def _checklist(stored: Iterable[dict[str, str]], *, told: bool) -> tuple[ConditionRow, ...]:
    """The conditions in order; a reason is explained where it first stands in the way, not again below.

    The platform's own sentences name nodes, pods and log lines: they are for the endpoint's owner (`told`).
    """
    said: set[str] = set()
    rows = []
    for item in stored:
        done, again = item["status"] == "True", item["reason"] in said
        said.add(item["reason"])
        rows.append(
            ConditionRow(
                label=words.CONDITIONS[item["type"]],
                word=words.condition(item["status"], item["reason"]),
                text="" if again else words.REASONS.get(item["reason"], ""),
                reason=item["reason"],
                detail="" if again or done or not told else item["message"],
                at=datetime.fromisoformat(item["at"]),
            )
        )
    return tuple(rows)


def _replicas(deployment_id: UUID) -> tuple[ReplicaRow, ...]:
    seen = Observed.objects.filter(deployment_id=deployment_id).first()
    if seen is None or seen.facts is None:
        return ()
    states = dict(Replica.objects.filter(deployment_id=deployment_id).values_list("pod_uid", "state"))
    return tuple(_replica(pod, states.get(UUID(pod.uid), "")) for pod in facts.from_json(seen.facts).pods)


def _replica(pod: ObservedPod, state: str) -> ReplicaRow:
    if pod.terminating:
        word = words.REPLICAS["ending"]
    elif pod.reason in words.FAIL_REASONS:
        word = words.BROKEN
    elif not pod.ready or state == ReplicaState.GONE:
        word = words.REPLICAS["starting"]
    else:
        word = words.REPLICAS.get(state, words.REPLICAS["proving"])
    return ReplicaRow(pod, word, words.REASONS.get(pod.reason, ""))
