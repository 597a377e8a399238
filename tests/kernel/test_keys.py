"""A key's shape and checksum are checked offline; only its digest is kept."""

import pytest

from kernel import keys

PEPPER = b"p" * 32


def test_a_generated_key_parses_and_matches_its_digest() -> None:
    key = keys.generate()
    assert keys.parse(key.text) == key
    assert keys.matches(PEPPER, key.text, keys.digest(PEPPER, key.text))
    assert not keys.matches(b"q" * 32, key.text, keys.digest(PEPPER, key.text))
    assert len(key.text) == len("moorage_live_") + 12 + 1 + 43 + 6


def test_two_keys_differ_and_a_repr_hides_the_secret() -> None:
    one, two = keys.generate("test"), keys.generate("test")
    assert one.text != two.text
    assert one.text not in repr(one)
    assert one.mode == "test"


@pytest.mark.parametrize("position", [14, 30, -1])
def test_a_changed_character_breaks_the_checksum(position: int) -> None:
    text = list(keys.generate().text)
    text[position] = "0" if text[position] != "0" else "1"
    assert keys.parse("".join(text)) is None


@pytest.mark.parametrize("text", ["", "sk-abc", "moorage_live_short", "moorage_prod_" + "a" * 62])
def test_junk_is_no_key(text: str) -> None:
    assert keys.parse(text) is None


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="live, test"):
        keys.generate("prod")
