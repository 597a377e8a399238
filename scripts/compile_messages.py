"""Compile the translations, locale/*/LC_MESSAGES/*.po to .mo, without GNU gettext: a newcomer has none."""

# ruff: noqa: INP001  (a script)

from pathlib import Path

import polib


def main() -> None:
    source_root = Path(__file__).resolve().parents[1] / "platform"
    for source in source_root.glob("**/LC_MESSAGES/*.po"):
        compiled = source.with_suffix(".mo")
        if not compiled.exists() or compiled.stat().st_mtime < source.stat().st_mtime:
            polib.pofile(str(source)).save_as_mofile(str(compiled))


if __name__ == "__main__":
    main()
