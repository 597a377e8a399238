"""The catalogue as values: releases, recipes and accelerators, validated. Pure: data in, dataclasses out."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,47}")
_QUANTITY = re.compile(r"(\d+)(Ki|Mi|Gi)")
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_PLACEHOLDER = re.compile(r"<[^>]+>")

TPM_STEP = 1000  # reservations are sold and priced in thousands of tokens a minute

# An engine's share of its host where a recipe names none; ours, per card.
DEFAULT_CPU_MILLIS_PER_CARD = 8000
DEFAULT_MEMORY_MIB_PER_CARD = 64 << 10


class CatalogueError(ValueError):
    """An entry is malformed; the text names the entry and the field."""


@dataclass(frozen=True, slots=True)
class Release:
    """A public model at one revision. Sizes in GiB; `kv_bytes` is the cache of one token, whole model, BF16.

    `formula` False: admitted by measured starts alone. `notice` is shown wherever the release is listed.
    `path` is a checkpoint folder of the operator's, None where it lies under the pool's weights root.
    """

    id: str
    repo: str
    family: str
    status: str
    architecture: str
    licence: str
    max_context: int
    weights_gib: float | None
    native_bits: int
    kv_bytes: int | None
    kv_heads: int | None
    routed_gib: float
    params_b: float
    min_version: str
    generation_defaults: Mapping[str, Any]
    servable: bool
    test: bool
    notice: str
    verified: bool
    source: tuple[str, ...]
    path: str | None = None

    @property
    def formula(self) -> bool:
        """Whether the sizing formula may admit it: V4's cache defies it."""
        return not self.family.startswith("v4")


@dataclass(frozen=True, slots=True)
class Layout:
    """Parallelism: data, tensor and pipeline ranks, and whether experts spread over all of them."""

    dp: int
    tp: int
    pp: int
    ep: bool


@dataclass(frozen=True, slots=True)
class Reservable:
    """What a shared replica of a recipe lets in reservations: tokens a minute in all, and the least of one."""

    tpm_per_replica: int
    min_tpm: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one release runs on some accelerators: what a Deployment's engine gets.

    `image` is a repository; the pool says which tag of it runs there. `placeholders` are values that the
    arguments and variables leave open. `reservable` None: nobody has measured what it carries. `prefix_affinity`:
    requests that begin alike prefer the same replica.
    """

    id: str
    release: str
    variant: str
    accelerators: tuple[str, ...]
    nodes: int
    cards_per_node: int
    layout: Layout
    image: str | None
    args: tuple[str, ...]
    env: Mapping[str, str]
    max_model_len: int | None
    shm_bytes: int
    startup_budget_s: int
    startup_period_s: int
    shutdown_timeout_s: int
    pre_stop_s: int
    cpu_millis: int
    memory_bytes: int
    verified: bool
    source: tuple[str, ...]
    reservable: Reservable | None = None
    prefix_affinity: bool = False

    @property
    def cards(self) -> int:
        """Accelerators of one replica."""
        return self.nodes * self.cards_per_node

    @property
    def is_ranked(self) -> bool:
        """Whether flags alone tell the nodes of one replica apart, without another program that starts them."""
        dp, alike = self.layout.dp, "ray" not in self.args
        return self.nodes == 1 or (alike and (dp == 1 or dp == self.nodes or (self.nodes == 2 and dp % 2 == 0)))

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Values in angle brackets that nobody has filled in."""
        texts = (*self.args, *self.env.values())
        return tuple(dict.fromkeys(found for text in texts for found in _PLACEHOLDER.findall(text)))


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A kind of card. `usable_gib` is of one schedulable unit, None where never measured.

    `beyond_restricted` is what its runtime takes of a pod that Pod Security `restricted` refuses.
    """

    id: str
    vendor: str
    name: str
    memory_gb: int | None
    usable_gib: float | None
    weight_formats: tuple[str, ...]
    servable: bool
    beyond_restricted: tuple[str, ...]
    verified: bool
    source: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything by id."""

    releases: Mapping[str, Release]
    recipes: Mapping[str, Recipe]
    accelerators: Mapping[str, Accelerator]

    def recipes_of(self, release_id: str) -> tuple[Recipe, ...]:
        """The release's recipes in the catalogue's order."""
        return tuple(recipe for recipe in self.recipes.values() if recipe.release == release_id)


def parse(models: Mapping[str, Any], recipes: Mapping[str, Any], accelerators: Mapping[str, Any]) -> Catalogue:
    """The catalogue behind three documents. CatalogueError names the first entry that is malformed."""
    chips = _by_id(
        "accelerator",
        (_Entry("accelerator", item) for item in accelerators["accelerators"]),
        lambda entry: _accelerator(entry, accelerators["vendors"]),
    )
    releases = _by_id("release", (_Entry("release", item) for item in models["models"]), _release)
    profiles = (recipes["probe_profiles"], recipes["termination_profiles"])
    known = _by_id(
        "recipe",
        (_Entry("recipe", item) for item in recipes["recipes"]),
        lambda entry: _recipe(entry, *profiles, releases, chips),
    )
    return Catalogue(releases, known, chips)


class _Entry:
    """One mapping of a document; every fault that it finds names the entry."""

    def __init__(self, kind: str, data: Any) -> None:
        if not isinstance(data, Mapping):
            raise CatalogueError(f"{kind}: an entry is a mapping, not {data!r}")
        self.data = data
        self.name = f"{kind} {data.get('id')!r}"
        self.id = self.text("id")
        if not _ID.fullmatch(self.id):
            self.fail("id", "has small letters, digits, dots and hyphens, at most 48")

    def fail(self, field: str, why: str) -> None:
        """Refuse the entry."""
        raise CatalogueError(f"{self.name}: {field} {why}")

    def _get(self, field: str, kinds: type | tuple[type, ...], said: str, *, null: bool = False) -> Any:
        value = self.data.get(field)
        if value is None and null:
            return None
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            self.fail(field, f"is {said}, not {value!r}")
        return value

    def text(self, field: str, *, null: bool = False) -> Any:
        """A non-empty string, or None where `null` allows it."""
        value = self._get(field, str, "a text", null=null)
        if value == "":
            self.fail(field, "is empty")
        return value

    def flag(self, field: str, default: bool | None = None) -> bool:
        """A boolean."""
        if default is not None and field not in self.data:
            return default
        return bool(self._get(field, bool, "true or false"))

    def number(self, field: str, *, null: bool = False) -> Any:
        """A number above zero."""
        value = self._get(field, (int, float), "a number", null=null)
        if value is not None and value <= 0:
            self.fail(field, f"is above zero, not {value}")
        return value

    def whole(self, field: str, *, null: bool = False) -> Any:
        """A whole number above zero."""
        value = self._get(field, int, "a whole number", null=null)
        if value is not None and value <= 0:
            self.fail(field, f"is above zero, not {value}")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._get(field, list, "a list")
        if not all(isinstance(item, str) for item in value):
            self.fail(field, "is a list of texts; quote numbers")
        return tuple(value)

    def table(self, field: str) -> dict[str, Any]:
        """A mapping."""
        return dict(self._get(field, Mapping, "a mapping"))


def _by_id(kind: str, entries: Iterable[_Entry], build: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        if entry.id in found:
            raise CatalogueError(f"{kind} {entry.id!r}: id occurs twice")
        found[entry.id] = build(entry)
    return found


def _accelerator(entry: _Entry, vendors: Mapping[str, Any]) -> Accelerator:
    vendor = entry.text("vendor")
    if vendor not in vendors:
        entry.fail("vendor", f"names no vendor: {vendor!r}")
    return Accelerator(
        id=entry.id,
        vendor=vendor,
        name=entry.text("name"),
        memory_gb=entry.whole("memory_gb", null=True),
        usable_gib=entry.number("unit_memory_gb", null=True) or entry.number("usable_gib", null=True),
        weight_formats=entry.texts("weight_formats"),
        servable=entry.flag("servable", default=True),
        beyond_restricted=tuple(vendors[vendor].get("beyond_restricted", ())),
        verified=entry.flag("verified"),
        source=entry.texts("source"),
    )


def _release(entry: _Entry) -> Release:
    attention, engine = entry.table("attention"), entry.table("vllm")
    native = entry.text("native_dtype")
    servable = entry.flag("servable", default=True) and entry.data.get("max_context") is not None
    if servable and not isinstance(engine.get("min_version"), str):
        entry.fail("vllm.min_version", "is a text; quote it")
    cache, moe = attention.get("kv_bytes_per_token") or {}, entry.data.get("moe") or {}
    return Release(
        id=entry.id,
        repo=entry.text("hf_repo"),
        family=entry.text("family"),
        status=entry.text("status"),
        architecture=entry.text("architecture", null=True) or "",
        licence=entry.text("licence", null=True) or "",
        max_context=entry.whole("max_context", null=True) or 0,
        weights_gib=_served_gib(entry, moe),
        native_bits=_bits(native),
        kv_bytes=cache.get("bf16"),
        kv_heads=attention.get("kv_heads") if attention.get("kv_sharded_by_tp") else None,
        routed_gib=float(moe.get("routed_expert_weights_gib_fp8") or 0),
        params_b=float(entry.number("params_total_b", null=True) or 0),
        min_version=engine.get("min_version") or "",
        generation_defaults=entry.table("generation_defaults"),
        servable=servable,
        test=entry.flag("test", default=False),
        notice=entry.text("notice", null=True) or "",
        verified=entry.flag("verified"),
        source=entry.texts("source"),
    )


def _served_gib(entry: _Entry, moe: Mapping[str, Any]) -> float | None:
    """What an engine loads: without the multi-token-prediction layers, where the entry tells them apart."""
    on_disk: float | None = entry.number("weights_gib", null=True)
    if "other_weights_gib_fp8" in moe:
        return float(moe["routed_expert_weights_gib_fp8"] + moe["other_weights_gib_fp8"])
    return on_disk


def _recipe(
    entry: _Entry,
    probes: Mapping[str, Any],
    terminations: Mapping[str, Any],
    releases: Mapping[str, Release],
    chips: Mapping[str, Accelerator],
) -> Recipe:
    release, accelerators = entry.text("model"), entry.texts("accelerators")
    if release not in releases:
        entry.fail("model", f"names no release: {release!r}")
    for chip in accelerators:
        if chip not in chips:
            entry.fail("accelerators", f"names no accelerator: {chip!r}")
    probe, termination = entry.text("probe_profile"), entry.text("termination_profile")
    if probe not in probes:
        entry.fail("probe_profile", f"is one of {', '.join(sorted(set(probes) - {'rules', 'source'}))}")
    if termination not in terminations:
        entry.fail("termination_profile", f"names no profile: {termination!r}")
    nodes, cards = entry.whole("nodes"), entry.whole("cards_per_node")
    ending, starting = terminations[termination], probes[probe]
    return Recipe(
        id=entry.id,
        release=release,
        variant=entry.text("variant"),
        accelerators=accelerators,
        nodes=nodes,
        cards_per_node=cards,
        layout=_layout(entry),
        image=entry.text("image", null=True),
        args=entry.texts("args"),
        env=_env(entry),
        max_model_len=entry.whole("max_model_len", null=True),
        shm_bytes=_quantity(entry, "shm"),
        startup_budget_s=int(starting["budget_minutes"]) * 60,
        startup_period_s=int(starting["startup"]["periodSeconds"]),
        shutdown_timeout_s=int(ending["args"][1]),
        pre_stop_s=int(ending["preStop_sleep_s"]),
        cpu_millis=entry.whole("cpu_millis", null=True) or cards * DEFAULT_CPU_MILLIS_PER_CARD,
        memory_bytes=(entry.whole("memory_mib", null=True) or cards * DEFAULT_MEMORY_MIB_PER_CARD) << 20,
        verified=entry.flag("verified"),
        source=entry.texts("source"),
        reservable=_reservable(entry),
        prefix_affinity=entry.flag("prefix_affinity", default=False),
    )


def _reservable(entry: _Entry) -> Reservable | None:
    if "reservable" not in entry.data:
        return None
    value = entry.table("reservable")
    numbers = [value.get(name) for name in ("tpm_per_replica", "min_tpm")]
    if not all(isinstance(tpm, int) and tpm > 0 and tpm % TPM_STEP == 0 for tpm in numbers):
        entry.fail("reservable", f"has tpm_per_replica and min_tpm, multiples of {TPM_STEP} above zero")
    return Reservable(value["tpm_per_replica"], value["min_tpm"])


def _env(entry: _Entry) -> dict[str, str]:
    """Variables, filled in: a pod knows its address, and beside loopback it has one network, which engines find."""
    values = {name: str(value) for name, value in entry.table("env").items()}
    return {
        name: "$(POD_IP)" if value == "<pod IP>" else value
        for name, value in values.items()
        if not name.endswith("_SOCKET_IFNAME")
    }


def _layout(entry: _Entry) -> Layout:
    value = entry.table("layout")
    ranks = [value.get(name) for name in ("dp", "tp", "pp")]
    if not all(isinstance(rank, int) and rank >= 1 for rank in ranks) or not isinstance(value.get("ep"), bool):
        entry.fail("layout", "has dp, tp and pp of at least 1, and ep true or false")
    return Layout(value["dp"], value["tp"], value["pp"], value["ep"])


def _quantity(entry: _Entry, field: str) -> int:
    match = _QUANTITY.fullmatch(entry.text(field))
    if match is None:
        entry.fail(field, "is a size such as 64Mi or 16Gi")
    assert match is not None
    return int(match[1]) * _UNITS[match[2]]


def _bits(text: str) -> int:
    """Bits per weight of a dtype's name: the leading word decides."""
    word = text.lower()
    for mark, bits in (("fp4", 4), ("int4", 4), ("awq", 4), ("w4", 4), ("fp8", 8), ("int8", 8), ("w8", 8)):
        if mark in word.split(" ")[0]:
            return bits
    return 16


def variant_bits(release: Release, variant: str) -> int:
    """Bits per weight of a recipe's variant; `native` is the release's own."""
    return release.native_bits if variant.startswith("native") else _bits(variant)
