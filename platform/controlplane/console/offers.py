"""What the catalogue and the deploy form show: releases, where they can run, and what that would cost."""

from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from django.conf import settings
from django.utils.translation import gettext as _

from billing.selectors import balance_for
from controlplane.console.prices import (
    HOUR_S,
    Price,
    million_tokens_cost,
    price_list,
    reserved_day_cost,
    sheet_now,
    time_cost,
)
from controlplane.listings import regions
from inference.catalogue_files import catalogue
from inference.core.catalogue import TPM_STEP, Release
from inference.core.placement import Placement, place, sentences
from inference.core.words import Rung
from inference.models import Pool
from inference.selectors import ReleaseView, pool_facts, pool_list, release_list, sku_of
from inference.services import HOLD_S
from kernel.problems import NOT_FOUND, Problem
from tenants.models import Tenant


@dataclass(frozen=True, slots=True)
class Source:
    """Where a statement of the catalogue was read; `url` is empty for a file."""

    text: str
    url: str


@dataclass(frozen=True, slots=True)
class ReleaseCard:
    """A release in the catalogue; `refusals` say pool by pool why none runs it, empty where one does."""

    view: ReleaseView
    precision: str
    parameters: str
    sources: tuple[Source, ...]
    prices: tuple[Price, ...]
    pool: str
    waits: bool
    refusals: tuple[str, ...]

    @property
    def release(self) -> Release:
        """The catalogue's entry."""
        return self.view.release


@dataclass(frozen=True, slots=True)
class Quote:
    """What an endpoint would cost, in pico-units; `refusal` replaces the figures where nothing fits.

    `held` is set aside at once, for an hour of dedicated time or a day of a reservation. `shared` is what the same
    release costs without any endpoint, `free_tpm` what is left to reserve.
    """

    currency: str
    rung: str
    refusal: str = ""
    shared: tuple[Price, ...] = ()
    free_tpm: int = 0
    per_day: int = 0
    per_hour: int = 0
    held: int = 0
    per_million_tokens: int = 0
    available: int = 0
    waits: bool = False

    @property
    def short(self) -> bool:
        """The balance does not cover what would be held."""
        return self.held > self.available


def cards(tenant: Tenant) -> list[ReleaseCard]:
    """The catalogue; releases that a pool here runs come first."""
    found = [_card(tenant, view, settings.REGION) for view in release_list(settings.REGION)]
    return sorted(found, key=lambda card: not card.pool)


def card_of(tenant: Tenant, release_id: str) -> ReleaseCard:
    """One release of the catalogue. Problem NOT_FOUND for every other id."""
    for view in release_list(settings.REGION):
        if view.release.id == release_id:
            return _card(tenant, view, settings.REGION)
    raise Problem(NOT_FOUND, f"release {release_id[:40]!r} is not in the catalogue")


def form_choices() -> dict[str, list[tuple[str, str]]]:
    """Choices of the deploy form: the regions, releases that a pool of one runs, the accelerators of their pools."""
    releases: dict[str, str] = {}
    accelerators: dict[str, str] = {}
    places = regions()
    for region in places:
        for view in release_list(region):
            if view.offer or _placed(view.release.id, region=region).pool:
                releases[view.release.id] = _release_label(view.release)
        accelerators |= {pool.accelerator: pool.accelerator_name for pool in pool_list(region)}
    return {
        "releases": list(releases.items()),
        "regions": [(region, region) for region in places],
        "accelerators": list(accelerators.items()),
    }


def quote(tenant: Tenant, *, release: str, rung: str, region: str, accelerator: str, replicas: int, tpm: int) -> Quote:
    """Price of an endpoint before it exists, placed as `endpoint_create` would place it."""
    shared = price_list(tenant, [sku_of(release, Rung.SHARED, "")], region)
    if rung == Rung.RESERVED:
        found = _reserved_quote(tenant, release, region, tpm)
    else:
        found = _dedicated_quote(tenant, release, region, accelerator, replicas)
    return replace(found, shared=shared)


def _dedicated_quote(tenant: Tenant, release: str, region: str, accelerator: str, replicas: int) -> Quote:
    nothing = Quote(tenant.currency, Rung.DEDICATED)
    placement = _placed(release, region=region, accelerator=accelerator or None, replicas=replicas)
    if placement.pool is None or placement.recipe is None:
        return replace(nothing, refusal=sentences(placement.refusals))
    sheet = sheet_now(tenant, sku_of(release, Rung.DEDICATED, placement.pool.accelerator), region)
    accelerators = placement.recipe.cards * replicas
    per_hour, held = time_cost(sheet, HOUR_S * accelerators), time_cost(sheet, HOLD_S * accelerators)
    if sheet is None or sheet.unrated() or per_hour is None or held is None:
        return replace(nothing, refusal=_("No price is in force for this release on this accelerator."))
    return replace(
        nothing,
        per_hour=per_hour,
        per_day=per_hour * 24,
        held=held,
        per_million_tokens=million_tokens_cost(sheet),
        available=balance_for(tenant.id).available_pico,
        waits=placement.waits,
    )


def _reserved_quote(tenant: Tenant, release: str, region: str, tpm: int) -> Quote:
    nothing = Quote(tenant.currency, Rung.RESERVED)
    offer = next((view.offer for view in release_list(region) if view.release.id == release), None)
    if offer is None:
        return replace(nothing, refusal=_("This release is not let in reservations here; choose dedicated."))
    if tpm < offer.min_tpm or tpm % TPM_STEP:
        sentence = _("Tokens a minute are a multiple of %(step)s and at least %(least)s.")
        return replace(nothing, refusal=sentence % {"step": TPM_STEP, "least": offer.min_tpm})
    if tpm > offer.free_tpm:
        sentence = _("%(free)s tokens a minute are left to reserve; ask for less, or choose dedicated.")
        return replace(nothing, refusal=sentence % {"free": offer.free_tpm})
    sheet = sheet_now(tenant, sku_of(release, Rung.RESERVED, ""), region)
    per_day = reserved_day_cost(sheet, tpm)
    if sheet is None or sheet.unrated() or per_day is None:
        return replace(nothing, refusal=_("No price is in force for a reservation of this release."))
    return replace(
        nothing,
        per_day=per_day,
        held=per_day,
        per_million_tokens=million_tokens_cost(sheet),
        available=balance_for(tenant.id).available_pico,
        free_tpm=offer.free_tpm,
    )


def _placed(release_id: str, *, region: str, accelerator: str | None = None, replicas: int = 1) -> Placement:
    return place(
        catalogue(),
        catalogue().releases[release_id],
        [pool_facts(pool) for pool in Pool.objects.all()],
        region=region,
        replicas=replicas,
        accelerator=accelerator,
    )


def _card(tenant: Tenant, view: ReleaseView, region: str) -> ReleaseCard:
    placement = _placed(view.release.id, region=region)
    return ReleaseCard(
        view=view,
        precision=f"{view.release.native_bits}-bit",
        parameters=_parameters(view.release.params_b),
        sources=tuple(_source(text) for text in view.release.source),
        prices=price_list(tenant, view.skus.values(), region),
        pool=placement.pool.name if placement.pool else "",
        waits=placement.waits,
        refusals=tuple(dict.fromkeys(item.sentence for item in placement.refusals)) if not placement.pool else (),
    )


def _source(text: str) -> Source:
    if text.startswith("github:"):
        repository, _colon, path = text.removeprefix("github:").partition(":")
        return Source(repository, f"https://github.com/{repository}/blob/HEAD/{path}")
    if text.startswith("https://"):
        return Source(urlsplit(text).netloc, text)
    return Source(text, "")


def _parameters(billions: float) -> str:
    if not billions:
        return "–"
    return f"{billions:g} B" if billions >= 1 else f"{billions * 1000:g} M"


def _release_label(release: Release) -> str:
    return f"{release.repo} · {_('Test model')}" if release.test else release.repo
