"""Ids sort by time, spell and parse back, and repeat where they must."""

import time
from datetime import UTC, datetime
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import ids


def test_a_new_id_is_a_version_7_uuid_of_this_moment() -> None:
    before = time.time_ns() // 1_000_000
    value = ids.new_id()
    assert value.version == 7
    assert value.variant == "specified in RFC 4122"
    assert before <= ids.id_time_ms(value) <= time.time_ns() // 1_000_000


def test_a_derived_id_repeats_and_depends_on_every_part() -> None:
    at = datetime(2026, 1, 2, 3, tzinfo=UTC)
    first = ids.derived_id(at, "dep", "pod")
    assert first == ids.derived_id(at, "dep", "pod")
    assert first.version == 7
    assert len({first, ids.derived_id(at, "dep", "pod2"), ids.derived_id(at, "depp", "od")}) == 3
    assert ids.id_time_ms(first) == int(at.timestamp() * 1000)


@given(st.uuids())
def test_an_id_reads_back_as_it_was_spelled(value: UUID) -> None:
    text = ids.encode(ids.ENDPOINT, value)
    assert text.startswith("ep_")
    assert len(text) == 29
    assert ids.decode(ids.ENDPOINT, text) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("key_" + "0" * 26, "expected ep_"),
        ("ep_" + "0" * 25, "26 characters"),
        ("ep_" + "u" * 26, "does not occur"),
        ("ep_" + "z" * 26, "out of range"),
        ("", "expected ep_"),
    ],
)
def test_a_malformed_id_is_refused_with_the_reason(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ids.decode(ids.ENDPOINT, text)


def test_minted_ids_are_uuids_of_version_7_that_never_repeat_in_a_process_or_another() -> None:
    now_ms = time.time_ns() // 1_000_000
    one, other = ids.minter(), ids.minter()
    texts = [made(now_ms) for made in (one, other) for _ in range(10_000)]
    minted = [UUID(text) for text in texts]
    assert [str(value) for value in minted] == texts
    assert {(value.version, value.variant) for value in minted} == {(7, RFC_4122)}
    assert len(set(texts)) == 20_000
    assert {ids.id_time_ms(value) for value in minted} == {now_ms}
