"""Words that people see for the rooms' codes: label, tone and icon in one place, so that badges never drift."""

from collections.abc import Mapping
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

OK, INFO, WARN, BAD, NEUTRAL = "ok", "info", "warn", "bad", "neutral"


@dataclass(frozen=True, slots=True)
class Word:
    """`tone` is one of ok, info, warn, bad, neutral; `icon` a symbol of the sprite; `motion` a CSS class."""

    label: str | Promise
    tone: str = NEUTRAL
    icon: str = "neutral"
    motion: str = ""


def _busy(label: str | Promise) -> Word:
    return Word(label, INFO, "busy", "spin")


def _good(label: str | Promise) -> Word:
    return Word(label, OK, "ok")


def _warning(label: str | Promise) -> Word:
    return Word(label, WARN, "warn")


def _bad(label: str | Promise) -> Word:
    return Word(label, BAD, "bad")


PHASES = {
    "requested": _busy(_("Requested")),
    "waiting_capacity": _warning(_("Waiting for capacity")),
    "provisioning": _busy(_("Provisioning")),
    "loading": _busy(_("Loading the model")),
    "running": _good(_("Running")),
    "degraded": _warning(_("Degraded")),
    "updating": _busy(_("Updating")),
    "update_failed": _bad(_("Update failed")),
    "scaled_to_zero": Word(_("Scaled to zero"), NEUTRAL, "paused"),
    "waking": _busy(_("Waking")),
    "pausing": _busy(_("Pausing")),
    "paused": Word(_("Paused"), NEUTRAL, "paused"),
    "suspended": _bad(_("Suspended")),
    "failed": _bad(_("Failed")),
    "deleting": _busy(_("Deleting")),
    "deleted": Word(_("Deleted")),
}
# How often the endpoint's page asks again, in seconds; absent: never.
MOVING_S, RESTING_S = 2, 15
POLL_S = dict.fromkeys(PHASES, MOVING_S) | dict.fromkeys(
    ("running", "paused", "scaled_to_zero", "suspended", "failed", "update_failed", "waiting_capacity"), RESTING_S
)
del POLL_S["deleted"]

CONDITIONS = {
    "Accepted": _("Accepted"),
    "CapacityReserved": _("Capacity reserved"),
    "WeightsCached": _("Weights at hand"),
    "Scheduled": _("Scheduled"),
    "EngineReady": _("Engine ready"),
    "RouteProgrammed": _("Route known to the gateways"),
    "Ready": _("Ready"),
}
DONE, NOT_YET, IN_PROGRESS = _good(_("Done")), Word(_("Not yet"), NEUTRAL, "pending"), _busy(_("In progress"))
STOPPED, IN_THE_WAY = Word(_("Stopped"), NEUTRAL, "paused"), _warning(_("Waiting"))
BROKEN = _bad(_("Failed"))

# What a reason means to the person who reads it; the reason itself is stable API.
REASONS = {
    "Placed": _("A pool that fits was found."),
    "NotInCatalogue": _("The catalogue has what this endpoint runs no more."),
    "ClusterUnreachable": _("The cluster does not answer; it is asked again."),
    "ManifestRefused": _("The cluster refuses what this endpoint needs."),
    "HoldPending": _("The money for the first hour is about to be held."),
    "Reserved": _("The accelerators are reserved for you."),
    "NoRoom": _("The pool is full. The endpoint starts by itself as soon as there is room."),
    "OnPool": _("The weights lie on the pool."),
    "Loaded": _("An engine has loaded the weights."),
    "NotReported": _("Known once an engine has loaded them."),
    "Scheduled": _("Every replica has a node."),
    "NoPodYet": _("The cluster has started no replica yet."),
    "Answering": _("The engine answers."),
    "Starting": _("The engine starts and loads the weights; this takes minutes for large models."),
    "Running": _("The replica runs."),
    "Terminating": _("The replica finishes its last requests."),
    "Programmed": _("The gateways know this endpoint."),
    "Pending": _("The gateways will know this endpoint in a moment."),
    "Proving": _("The first answer has not come through the gateway yet; nothing is billed until it has."),
    "Serving": _("Requests are answered."),
    "Degraded": _("Requests are answered by fewer replicas than you asked for."),
    "Updating": _("The new version is rolling out; requests are answered meanwhile."),
    "UpdateFailed": _("The new version does not start; the old one still answers."),
    "Recovering": _("No replica answers now; replacements are starting."),
    "Waking": _("Replicas are starting again."),
    "ScaledToZero": _("No replica runs, and nothing is billed."),
    "Paused": _("Paused: no replica runs, and nothing is billed."),
    "Pausing": _("Replicas finish their last requests; nothing more is billed."),
    "Suspended": _("The tenant is suspended until its balance is settled."),
    "Deleting": _("Everything that belongs to the endpoint is being removed."),
    "Unschedulable": _("No node has room for a replica now."),
    "ImagePullFailed": _("The engine's image could not be fetched."),
    "StartFailed": _("The engine could not be started."),
    "OutOfMemory": _("The engine ran out of memory."),
    "CrashLoop": _("The engine ends again and again after its start."),
    "ProbeFailed": _("The engine runs but does not answer its health check."),
    "Evicted": _("The node needed its room; the replica is started elsewhere."),
    "NodeLost": _("The node is gone; the replica is started elsewhere."),
    "QuotaExceeded": _("The cluster's quota is reached."),
    "Refused": _("The cluster refused the replica."),
    "CreditExhausted": _("The balance does not cover the next hour. Top it up and the endpoint goes on."),
    "insufficient_balance": _("The balance does not cover the next hour. Top it up and the endpoint goes on."),
    "unrated": _("No price is in force for this; the operator has been told."),
}
STOP_REASONS = {"ScaledToZero", "Paused", "Pausing", "Suspended", "Deleting"}
WAIT_REASONS = {
    "NoRoom",
    "HoldPending",
    "Unschedulable",
    "QuotaExceeded",
    "CreditExhausted",
    "insufficient_balance",
    "unrated",
}
FAIL_REASONS = {"ManifestRefused", "ImagePullFailed", "StartFailed", "OutOfMemory", "CrashLoop", "Refused"}

REPLICAS = {
    "proving": _busy(_("Proving itself")),
    "serving": _good(_("Serving")),
    "starting": _busy(_("Starting")),
    "ending": Word(_("Ending"), NEUTRAL, "paused"),
}
RUNGS = {"dedicated": _("Dedicated"), "shared": _("Shared"), "reserved": _("Reserved")}
METERS = {
    "in_hit": _("Prompt tokens from the cache"),
    "in_miss": _("Prompt tokens"),
    "out": _("Answer tokens"),
    "reasoning": _("Reasoning tokens"),
    "accel_second": _("Accelerator seconds"),
    "ktpm_day": _("Days of 1,000 reserved tokens a minute"),
    "rebate": _("Rebate"),
    "package": _("Token package"),
}
ACCOUNTS = {
    "prepaid": _("Prepaid"),
    "promo": _("Promotional credit"),
    "receivable": _("Receivable"),
    "revenue": _("Revenue"),
    "cash": _("Cash"),
    "tax": _("Tax"),
    "rounding": _("Rounding"),
    "writeoff": _("Written off"),
    "suspense": _("In suspense"),
    "overrun": _("Overrun"),
}
TRANSACTIONS = {
    "usage": _("Usage"),
    "usage_late": _("Usage, booked late"),
    "topup": _("Top-up"),
    "topup_reversal": _("Top-up reversed"),
    "promo": _("Promotional credit"),
    "promo_reversal": _("Promotional credit reversed"),
    "payment": _("Payment"),
    "credit": _("Promotional credit"),
    "rounding": _("Rounding"),
    "correction": _("Correction"),
    "credit_expiry": _("Credit expired"),
}
INVOICES = {
    "draft": Word(_("Draft"), INFO, "info"),
    "issued": _warning(_("Issued")),
    "paid": _good(_("Paid")),
    "void": Word(_("Void")),
}
SCOPES = {
    "inference": _("Call endpoints"),
    "manage": _("Manage endpoints and keys over the API"),
    "billing": _("Read the bills over the API"),
}
ROLES = {
    "owner": _("Owner"),
    "developer": _("Developer"),
    "finance": _("Finance"),
    "viewer": _("Viewer"),
}
ROLE_HINTS = {
    "owner": _("Everything, and who the members are."),
    "developer": _("Deploys and changes endpoints, makes and revokes keys; sees usage, not the bills."),
    "finance": _("Sees usage, the ledger and the invoices; changes no endpoint and no key."),
    "viewer": _("Sees endpoints, keys and usage and changes nothing."),
}
KEY_ACTIVE, KEY_EXPIRED, KEY_REVOKED = _good(_("Active")), _warning(_("Expired")), Word(_("Revoked"))

STANDINGS = {"active": _good(_("Active")), "suspended": _bad(_("Suspended"))}
RESOURCES = {"endpoints": _("Endpoints"), "accelerators": _("Accelerators")}
OPERATIONS = {
    "topup": _("Top-up"),
    "grant": _("Promotional credit"),
    "reverse": _("Reversal"),
    "correct": _("Correction of usage"),
    "credit": _("Promotional credit"),
    "credit-limit": _("Agreed credit"),
    "pay": _("Payment"),
}
METER_OK, METER_LATE = _good(_("Up to date")), _warning(_("Behind"))


def condition(status: str, reason: str) -> Word:
    """Icon and tone of a condition: what is false for a good reason is no alarm."""
    if status == "True":
        return DONE
    if reason in FAIL_REASONS:
        return BROKEN
    if reason in WAIT_REASONS:
        return IN_THE_WAY
    if reason in STOP_REASONS:
        return STOPPED
    return IN_PROGRESS if status == "Unknown" else NOT_YET


def label_of(table: Mapping[str, Promise], code: str) -> str | Promise:
    """The word for a code; a code that is not in the table yet is shown as it is."""
    return table.get(code, code)
