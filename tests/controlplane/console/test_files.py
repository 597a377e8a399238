"""What the console is made of: vendored files, styles and translations, checked without a server."""

import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

import polib
import pytest

from controlplane.console import words
from controlplane.console.sentences import CONTEXT
from tests.controlplane.console.said import sentences

CONSOLE = Path(words.__file__).parent
LANGUAGES = ("zh_Hans", "ar")
PHYSICAL = re.compile(
    r"(?<![\w-])((margin|padding|border)-(left|right|top|bottom)|left|right|top|bottom|width|height"
    r"|(min|max)-(width|height))\s*:"
)


def test_every_vendored_file_is_the_one_that_was_written_down() -> None:
    manifest = tomllib.loads((CONSOLE / "VENDOR.toml").read_text())
    for entry in manifest["vendor"]:
        content = (CONSOLE / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], entry["name"]
        assert (CONSOLE / entry["licence_file"]).stat().st_size > 0


def test_every_file_in_the_vendor_folder_is_written_down() -> None:
    manifest = tomllib.loads((CONSOLE / "VENDOR.toml").read_text())
    known = {entry[name] for entry in manifest["vendor"] for name in ("file", "licence_file")}
    found = {str(path.relative_to(CONSOLE)) for path in (CONSOLE / "static/vendor").rglob("*") if path.is_file()}
    assert found == known


def test_styles_use_logical_properties_only() -> None:
    css = (CONSOLE / "static/console/console.css").read_text()
    assert [match[0] for match in PHYSICAL.finditer(re.sub(r"@media[^{]*", "", css))] == []


def test_every_icon_that_a_template_names_is_in_the_sprite() -> None:
    sprite = set(re.findall(r'<symbol id="([\w-]+)"', (CONSOLE / "static/console/icons.svg").read_text()))
    named = {
        name
        for template in (CONSOLE / "templates").rglob("*.html")
        for name in re.findall(r'{% icon "([\w-]+)"', template.read_text())
    }
    tables = (words.PHASES, words.REPLICAS, words.INVOICES)
    named |= {word.icon for table in tables for word in table.values()}
    named |= {word.icon for word in (words.DONE, words.NOT_YET, words.IN_PROGRESS, words.STOPPED, words.BROKEN)}
    assert named <= sprite


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sentence_of_the_console_is_translated(language: str, tmp_path: Path) -> None:
    translated = {entry.msgid_with_context: entry for entry in _catalogue(language)}
    found = {entry.msgid_with_context for entry in _extracted(tmp_path)}
    assert [msgid for msgid in found if msgid not in translated or not translated[msgid].translated()] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sentence_that_services_say_is_translated(language: str) -> None:
    translated = {entry.msgid for entry in _catalogue(language) if entry.msgctxt == CONTEXT and entry.translated()}
    assert sorted(sentences() - translated) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_keep_every_placeholder(language: str) -> None:
    for entry in _catalogue(language):
        for text in (entry.msgstr_plural or {0: entry.msgstr}).values():
            assert set(re.findall(r"%\(\w+\)s", text)) == set(re.findall(r"%\(\w+\)s", entry.msgid)), entry.msgid


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_compile(language: str, tmp_path: Path) -> None:
    source = CONSOLE / "locale" / language / "LC_MESSAGES/django.po"
    subprocess.run(["msgfmt", "--check", "-o", tmp_path / "django.mo", source], check=True)


def _catalogue(language: str) -> polib.POFile:
    return polib.pofile(str(CONSOLE / "locale" / language / "LC_MESSAGES/django.po"))


def _extracted(folder: Path) -> polib.POFile:
    """The msgids that the console's code and templates hold now, found as makemessages finds them."""
    from django.utils.translation import template

    sources = []
    for path in sorted(CONSOLE.rglob("*")):
        if path.suffix == ".html":
            copy = folder / f"{len(sources)}.py"
            copy.write_text(template.templatize(path.read_text(), origin=str(path)))
            sources.append(copy)
        elif path.suffix == ".py":
            sources.append(path)
    keywords = ("gettext", "gettext_lazy", "_", "gettext_noop", "pgettext:1c,2", "ngettext:1,2")
    pot = folder / "django.pot"
    arguments = [f"--keyword={keyword}" for keyword in keywords]
    subprocess.run(
        ["xgettext", "-L", "Python", "--from-code=UTF-8", "--no-wrap", "-o", pot, *arguments, *sources], check=True
    )
    return polib.pofile(str(pot))
