"""What people type: labels, hints and types. Limits and meaning are checked by the services."""

from datetime import UTC, datetime, time
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from controlplane.console import words
from kernel import money
from tenants.services import KEY_LIMITS

LEFT_TO_RIGHT = {"dir": "ltr", "spellcheck": "false", "autocomplete": "off"}
AMOUNT = forms.TextInput(LEFT_TO_RIGHT | {"inputmode": "decimal"})


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
    spend_cap = forms.CharField(
        label=_("Most to spend a month"), initial="0", required=False, max_length=40, widget=AMOUNT
    )
    user_cap = forms.CharField(
        label=_("Most to spend a month for each end user"), initial="0", required=False, max_length=40, widget=AMOUNT
    )

    def clean(self) -> dict[str, Any]:
        """Amounts as pico-units, empty fields as no limit."""
        values = super().clean() or {}
        for name in ("spend_cap", "user_cap"):
            try:
                values[f"{name}_pico"] = money.parse(values.pop(name, "") or "0")
            except ValueError as error:
                self.add_error(name, str(error))
        return values

    def limits(self) -> dict[str, int]:
        """The valid form as `api_key_limit` wants it."""
        return {name: self.cleaned_data.get(name) or 0 for name in KEY_LIMITS}


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
    """A new dedicated endpoint. Choices come from the catalogue and the pools."""

    release = forms.ChoiceField(label=_("Model release"))
    region = forms.ChoiceField(label=_("Region"))
    accelerator = forms.ChoiceField(
        label=_("Accelerator"), required=False, help_text=_("Left open, the best pool that has room is taken.")
    )
    replicas = forms.IntegerField(label=_("Replicas"), min_value=1, initial=1, widget=forms.NumberInput(LEFT_TO_RIGHT))
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
            "region": regions,
            "accelerator": [best, *accelerators],
        }
        for name, choices in self._choices.items():
            field = self.fields[name]
            assert isinstance(field, forms.ChoiceField)
            field.choices = choices

    def arguments(self) -> dict[str, Any]:
        """The valid form as keyword arguments of `endpoint_create`."""
        return self.cleaned_data | {"accelerator": self.cleaned_data["accelerator"] or None}

    def wanted(self) -> dict[str, Any]:
        """What the form holds now, valid or not: the choices that exist, and one replica where it has no number."""
        held: dict[str, Any] = {name: self._held(name) for name in ("release", "region", "accelerator")}
        typed = str(self["replicas"].value() or "")
        return held | {"replicas": int(typed) if typed.isdecimal() and int(typed) else 1}

    def _held(self, name: str) -> str:
        known = [value for value, _label in self._choices[name]]
        value = str(self[name].value() or "")
        return value if value in known else next(iter(known), "")


class ScaleForm(forms.Form):
    """How many replicas the endpoint should have."""

    replicas = forms.IntegerField(
        label=_("Replicas"),
        min_value=0,
        help_text=_("0 stops the replicas and their cost and keeps the id."),
        widget=forms.NumberInput(LEFT_TO_RIGHT),
    )
