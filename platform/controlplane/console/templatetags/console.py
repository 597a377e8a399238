"""Template tags: icons, money, ids and code blocks, each escaped and marked left-to-right where it must be."""

import itertools
from datetime import date, datetime
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils import dateformat
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import pgettext

from controlplane.console import sentences, words
from controlplane.console.money import InvoiceLineRow
from controlplane.console.words import Word
from kernel import money as kernel_money

register = template.Library()

THEMES = ("light", "dark")
PLACES = 6
_PICO_IN_MICRO = 10 ** (12 - PLACES)
_PICO_IN_CENT = 10**10


@register.simple_tag
def icon(name: str, classes: str = "") -> SafeString:
    """An icon of the sprite; decorative, a word always stands beside it."""
    return format_html(
        '<svg class="icon {}" aria-hidden="true" focusable="false"><use href="{}#{}"></use></svg>',
        classes,
        static("console/icons.svg"),
        name,
    )


@register.simple_tag
def badge(word: Word) -> SafeString:
    """Icon and word in the word's tone."""
    return format_html('<span class="badge tone-{}">{}{}</span>', word.tone, icon(word.icon, word.motion), word.label)


@register.simple_tag
def word(table: str, code: str) -> str | Promise:
    """The word that a table of `words` has for a code."""
    return words.label_of(getattr(words, table), code)


@register.filter
def told(sentence: str) -> SafeString | str:
    """A service's sentence in the reader's language, or marked as English where the catalogue lacks it."""
    said = sentences.told(sentence)
    return said if said != sentence else format_html('<bdi dir="ltr" lang="en">{}</bdi>', sentence)


@register.simple_tag(takes_context=True)
def theme(context: template.Context) -> str:
    """The theme that the visitor chose, from the cookie that the theme switch writes, else 'auto'."""
    request = context.get("request")
    chosen = request.COOKIES.get("theme") if request else None
    return chosen if chosen in THEMES else "auto"


def decimals(pico: int) -> str:
    """Pico-units for reading: at least 2 and at most 6 places, thousands grouped, never rounded to nothing."""
    micro = kernel_money.div_half_even(abs(pico), _PICO_IN_MICRO)
    sign = "-" if pico < 0 else ""
    if pico and not micro:
        return f"{sign}<0.000001"
    whole, places = divmod(micro, 10**PLACES)
    return f"{sign}{whole:,}.{f'{places:0{PLACES}}'.rstrip('0').ljust(2, '0')}"


@register.filter
def money(pico: int | None, currency: str) -> SafeString | str:
    """An amount with its currency; the exact value is in the title."""
    if pico is None:
        return "–"
    return _amount(pico, currency, decimals(pico))


@register.filter
def headline(pico: int | None, currency: str) -> SafeString | str:
    """An amount for a headline: whole cents from one unit on, as exact as `money` below."""
    if pico is None or abs(pico) < kernel_money.PICO:
        return money(pico, currency)
    cents = kernel_money.div_half_even(pico, _PICO_IN_CENT) * _PICO_IN_CENT
    return _amount(pico, currency, decimals(cents))


@register.filter
def column(pico: int, currency: str) -> SafeString:
    """An amount in a column of many: always six places, so that the points stand below each other."""
    shown = decimals(pico)
    if "<" not in shown:
        whole, _, places = shown.partition(".")
        shown = f"{whole}.{places.ljust(PLACES, '0')}"
    return _amount(pico, currency, shown)


@register.filter
def exact(pico: int, currency: str) -> SafeString:
    """An amount to its last digit, for ledgers."""
    return _amount(pico, currency, kernel_money.to_string(pico))


@register.simple_tag
def unit_price(line: InvoiceLineRow, currency: str) -> SafeString:
    """A line's price: exact, of one unit or of as many as it is quoted for."""
    price = exact(line.price, currency)
    return price if line.units == 1 else format_html("{} / {}", price, count(line.units))


@register.filter
def count(number: int | None) -> SafeString | str:
    """A whole number, thousands grouped."""
    return "–" if number is None else format_html('<bdi dir="ltr" class="num">{}</bdi>', f"{number:,}")


@register.filter
def instant(at: datetime | str | None) -> SafeString | str:
    """An instant in UTC, to the second; also one that is ISO 8601 text."""
    if at is None:
        return "–"
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    return _time(at, pgettext("an instant", r"j M Y, H:i:s \U\T\C"))


@register.filter
def day(at: date | None) -> SafeString | str:
    """A date, or that of an instant in UTC."""
    return "–" if at is None else _time(at, pgettext("a day", "j M Y"))


_numbers = itertools.count(1)


@register.inclusion_tag("console/parts/id.html")
def public_id(value: str, label: str = "") -> dict[str, Any]:
    """An id in mono, with a copy button."""
    return {"value": value, "dom_id": f"id-{next(_numbers)}", "label": label}


@register.inclusion_tag("console/parts/code.html")
def code(title: str, text: str) -> dict[str, Any]:
    """A code block with a title and a copy button."""
    return {"title": title, "text": text, "dom_id": f"code-{next(_numbers)}"}


def _time(at: date, pattern: str) -> SafeString:
    shown = dateformat.format(at, pattern)
    return format_html('<time datetime="{}"><bdi class="num nowrap">{}</bdi></time>', at.isoformat(), shown)


def _amount(pico: int, currency: str, text: str) -> SafeString:
    return format_html(
        '<bdi dir="ltr" class="num nowrap" title="{} {}"><span class="money-unit">{}</span> {}</bdi>',
        kernel_money.to_string(pico),
        currency,
        currency,
        text,
    )
