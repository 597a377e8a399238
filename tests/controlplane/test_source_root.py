"""`platform/` is a folder of source, never a package: it must not hide the standard library's `platform`."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = (ROOT, ROOT / "platform")


def test_the_standard_librarys_platform_wins_in_a_fresh_process() -> None:
    # In this process it is imported already, so only another one can tell.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, SOURCE_ROOTS))}
    code = "import platform, kernel.ids; print(platform.python_version(), platform.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    version, file = done.stdout.split()
    assert version == sys.version.split()[0]
    assert not Path(file).is_relative_to(ROOT / "platform")


def test_the_source_root_holds_packages_and_no_module_of_its_own() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert list((ROOT / "platform").glob("*.py")) == []
    assert not (ROOT / "tests" / "platform").exists()


def test_nothing_in_a_source_root_has_a_name_of_the_standard_library() -> None:
    names = {path.name for root in SOURCE_ROOTS for path in root.iterdir() if (path / "__init__.py").exists()}
    assert {"kernel", "controlplane", "tests"} <= names
    assert names.isdisjoint(sys.stdlib_module_names)
