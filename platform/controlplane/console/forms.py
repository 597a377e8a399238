"""What people type: labels, hints and types. Limits and meaning are checked by the services."""

from datetime import UTC, datetime, time
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from controlplane.console import words
from controlplane.console.sentences import told
from inference.core.catalogue import TPM_STEP
from kernel import money
from tenants.services import KEY_LIMITS

LEFT_TO_RIGHT = {"dir": "ltr", "spellcheck": "false", "autocomplete": "off"}
MAX_DIGITS = 10
AMOUNT = forms.TextInput(LEFT_TO_RIGHT | {"inputmode": "decimal"})


class AmountField(forms.Field):
    """An amount of the tenant's currency, cleaned to pico-units; left empty it is 0."""

    widget = AMOUNT

    def to_python(self, value: Any) -> int:
        """ValidationError where it is no decimal."""
        try:
            return money.parse(str(value or "0").strip())
        except ValueError as error:
            raise forms.ValidationError(told(str(error))) from error


class LimitsForm(forms.Form):
    """Limits of a key. Caps are amounts of the tenant's currency a calendar month; 0 is no limit."""

    rpm = forms.IntegerField(label=_("Requests a minute"), initial=600, widget=forms.NumberInput(LEFT_TO_RIGHT))
    concurrency = forms.IntegerField(label=_("Requests at once"), initial=64, widget=forms.NumberInput(LEFT_TO_RIGHT))
    tpm_uncached = forms.IntegerField(
        label=_("Prompt tokens a minute"), initial=0, required=False, widget=forms.NumberInput(LEFT_TO_RIGHT)
    )
    tpm_cached = forms.IntegerField(
        label=_("Cached prompt tokens a minute"), initial=0, required=False, widget=forms.NumberInput(LEFT_TO_RIGHT)
    )
    tpm_generated = forms.IntegerField(
        label=_("Answer tokens a minute"), initial=0, required=False, widget=forms.NumberInput(LEFT_TO_RIGHT)
    )
    spend_cap = AmountField(label=_("Most to spend a month"), initial="0", required=False)
    user_cap = AmountField(label=_("Most to spend a month for each end user"), initial="0", required=False)

    def limits(self) -> dict[str, int]:
        """The valid form as `api_key_limit` wants it."""
        return {name: self.cleaned_data[name.removesuffix("_pico")] or 0 for name in KEY_LIMITS}


class KeyForm(LimitsForm):
    """A new API key."""

    name = forms.CharField(
        label=_("Name"), max_length=80, help_text=_("So that you know it again: the program or the person.")
    )
    scopes = forms.MultipleChoiceField(
        label=_("May"),
        choices=list(words.SCOPES.items()),
        initial=["inference"],
        widget=forms.CheckboxSelectMultiple,
    )
    expires_on = forms.DateField(
        label=_("Last day"),
        required=False,
        help_text=_("UTC. Empty: it does not expire."),
        widget=forms.DateInput(LEFT_TO_RIGHT | {"type": "date"}),
    )

    def arguments(self) -> dict[str, Any]:
        """The valid form as keyword arguments of `key_create`; the last day counts to its end."""
        last_day = self.cleaned_data["expires_on"]
        return {
            "name": self.cleaned_data["name"],
            "scopes": self.cleaned_data["scopes"],
            "rpm": self.cleaned_data["rpm"],
            "concurrency": self.cleaned_data["concurrency"],
            "expires_at": datetime.combine(last_day, time.max, UTC) if last_day else None,
        }


class InvitationForm(forms.Form):
    """Somebody who should join the tenant."""

    note = forms.CharField(
        label=_("For whom"), max_length=80, help_text=_("A name or an address, so that you know the invitation again.")
    )
    role = forms.ChoiceField(label=_("Role"), choices=list(words.ROLES.items()), initial="developer")


class MoneyForm(forms.Form):
    """Money that an operator books for a tenant; `idem_key` makes a repeated press book once."""

    action = forms.ChoiceField(
        label=_("What it is"), choices=[(name, words.OPERATIONS[name]) for name in ("topup", "grant")]
    )
    amount = forms.CharField(label=_("Amount"), max_length=40, widget=AMOUNT)
    reason = forms.CharField(label=_("Reason"), max_length=200, help_text=_("Goes into the audit log, with your name."))
    idem_key = forms.CharField(label=_("Reference"), max_length=80, widget=forms.TextInput(LEFT_TO_RIGHT))


class DeployForm(forms.Form):
    """A new endpoint, dedicated or reserved. Choices come from the catalogue and the pools."""

    release = forms.ChoiceField(label=_("Model release"))
    rung = forms.ChoiceField(
        label=_("How you pay"),
        choices=[(name, words.RUNGS[name]) for name in ("dedicated", "reserved")],
        initial="dedicated",
    )
    region = forms.ChoiceField(label=_("Region"))
    accelerator = forms.ChoiceField(
        label=_("Accelerator"), required=False, help_text=_("Left open, the best pool that has room is taken.")
    )
    replicas = forms.IntegerField(
        label=_("Replicas"), min_value=1, initial=1, required=False, widget=forms.NumberInput(LEFT_TO_RIGHT)
    )
    tpm = forms.IntegerField(
        label=_("Tokens a minute"),
        min_value=0,
        initial=TPM_STEP,
        required=False,
        widget=forms.NumberInput(LEFT_TO_RIGHT | {"step": str(TPM_STEP)}),
        help_text=_("Prompt and answer together, kept for you on the shared engines."),
    )
    name = forms.CharField(
        label=_("Name"),
        max_length=48,
        help_text=_("Small letters, digits and hyphens. For people; programs use the id."),
        widget=forms.TextInput(LEFT_TO_RIGHT),
    )

    def __init__(
        self,
        data: Any = None,
        *,
        releases: list[tuple[str, str]],
        regions: list[tuple[str, str]],
        accelerators: list[tuple[str, str]],
        **kwargs: Any,
    ) -> None:
        super().__init__(data, **kwargs)
        best: tuple[str, Any] = ("", _("The best one that is free"))
        self._choices: dict[str, list[tuple[str, Any]]] = {
            "release": releases,
            "rung": [("dedicated", ""), ("reserved", "")],
            "region": regions,
            "accelerator": [best, *accelerators],
        }
        for name, choices in self._choices.items():
            field = self.fields[name]
            assert isinstance(field, forms.ChoiceField)
            if name != "rung":
                field.choices = choices

    def arguments(self) -> dict[str, Any]:
        """The valid form as keyword arguments of `endpoint_create`: what the other rung asks for is left out."""
        values = self.cleaned_data
        common = {name: values[name] for name in ("release", "rung", "region", "name")}
        if values["rung"] == "reserved":
            return common | {"tpm": values["tpm"] or 0}
        replicas = values["replicas"]
        return common | {"accelerator": values["accelerator"] or None, "replicas": 1 if replicas is None else replicas}

    def wanted(self) -> dict[str, Any]:
        """What the form holds now, valid or not: the choices that exist, and small numbers where it has none."""
        held: dict[str, Any] = {name: self._held(name) for name in ("release", "rung", "region", "accelerator")}
        return held | {"replicas": self._number("replicas", 1), "tpm": self._number("tpm", TPM_STEP)}

    def body(self) -> dict[str, Any]:
        """What the form holds now as the body of the API call."""
        held = self.wanted()
        common = {name: held[name] for name in ("release", "rung", "region")}
        common["name"] = str(self["name"].value() or "my-endpoint")
        if held["rung"] == "reserved":
            return common | {"tpm": held["tpm"]}
        return common | {"accelerator": held["accelerator"] or None, "replicas": held["replicas"]}

    def _number(self, name: str, least: int) -> int:
        typed = str(self[name].value() or "")
        is_sane = typed.isascii() and typed.isdecimal() and len(typed) < MAX_DIGITS
        return (int(typed) if is_sane else 0) or least

    def _held(self, name: str) -> str:
        known = [value for value, _label in self._choices[name]]
        value = str(self[name].value() or "")
        return value if value in known else next(iter(known), "")


class ReserveForm(forms.Form):
    """How many tokens a minute the reservation should keep."""

    tpm = forms.IntegerField(
        label=_("Tokens a minute"),
        min_value=0,
        help_text=_("A day is billed at the most that it held."),
        widget=forms.NumberInput(LEFT_TO_RIGHT | {"step": str(TPM_STEP)}),
    )


class ScaleForm(forms.Form):
    """How many replicas the endpoint should have."""

    replicas = forms.IntegerField(
        label=_("Replicas"),
        min_value=0,
        help_text=_("0 stops the replicas and their cost and keeps the id."),
        widget=forms.NumberInput(LEFT_TO_RIGHT),
    )


class CapForm(forms.Form):
    """The most to spend at an endpoint."""

    cap = AmountField(
        label=_("Most to spend a month"),
        required=False,
        help_text=_("Once it is spent, requests are refused until the first of the month, UTC. 0 is no cap."),
    )


class UpdateForm(forms.Form):
    """Another recipe for the endpoint."""

    recipe = forms.ChoiceField(
        label=_("Recipe"),
        help_text=_("New replicas take over one by one; where one does not start, the old ones go on answering."),
    )

    def __init__(self, data: Any = None, *, recipes: list[str]) -> None:
        super().__init__(data)
        field = self.fields["recipe"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [(name, name) for name in recipes]
