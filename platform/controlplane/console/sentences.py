"""Sentences that services write in English, said in the reader's language.

A language's catalogue holds them under CONTEXT with their values as `%(1)s`, `%(2)s`…, and a sentence is found by that
pattern, whether it was refused just now or stored long ago: services and the API know nothing of languages.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import polib
from django.utils.translation import get_language, to_locale

CONTEXT = "sentence"
JOINT = "; "
LOCALES = Path(__file__).parent / "locale"
_PLACE = re.compile(r"%\((\d+)\)s")
# A value holds no joint: where several sentences were joined, none of them swallows the next.
_VALUE = f"(?P<v{{}}>(?:(?!{JOINT}).)*?)"


def told(text: str) -> str:
    """A sentence, or several joined by JOINT, in the active language; what it has no words for stays as it is."""
    parts = text.split(JOINT)
    for length in range(len(parts), 0, -1):
        said = _said(JOINT.join(parts[:length]))
        if said is not None:
            return JOINT.join(filter(None, (said, told(JOINT.join(parts[length:])))))
    return text


def _said(sentence: str) -> str | None:
    for pattern, words in _patterns(to_locale(get_language() or "")):
        if found := pattern.fullmatch(sentence):
            values = {name.removeprefix("v"): told(value) for name, value in found.groupdict().items()}
            return words % values
    return None


@cache
def _patterns(locale: str) -> list[tuple[re.Pattern[str], str]]:
    """What to look for and what to say, the wordiest first: it is the most particular."""
    found = sorted(_entries(locale), key=lambda entry: -len(_PLACE.sub("", entry.msgid)))
    return [(re.compile(_pattern(entry.msgid)), entry.msgstr) for entry in found]


def _pattern(msgid: str) -> str:
    parts = _PLACE.split(msgid)
    return "".join(_VALUE.format(part) if at % 2 else re.escape(part) for at, part in enumerate(parts))


def _entries(locale: str) -> Iterator[polib.MOEntry]:
    path = LOCALES / locale / "LC_MESSAGES" / "django.mo"
    if path.exists():
        yield from (entry for entry in polib.mofile(str(path)) if entry.msgctxt == CONTEXT)
