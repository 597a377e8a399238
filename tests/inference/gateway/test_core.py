"""The pure parts: JSON spans and splices, event framing, counts, delivery marks, quotes."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.gateway.core import members, records, request, sse, usage, usual
from inference.gateway.core.delivered import Delivered
from inference.gateway.core.quote import Sheets, affordable_tokens, cost, quote
from inference.gateway.core.request import Size
from inference.gateway.core.usage import Counts, Running
from kernel.clock import to_ms
from kernel.pricing import IN_HIT, IN_MISS, OUT, REASONING, ClockWindow, Rate, Sheet, Unrated, worst_case
from kernel.problems import Problem

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=12,
)
OBJECT = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), JSON, min_size=1, max_size=6)
OURS = "a name that nobody draws"
SPELLINGS = st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}])


@given(OBJECT, SPELLINGS)
def test_a_span_holds_exactly_its_value(value: dict[str, Any], spelling: dict[str, Any]) -> None:
    raw = json.dumps(value, **spelling).encode()
    read, spans = members.read(raw)
    assert read == value
    assert {name: json.loads(raw[span.start : span.end]) for name, span in spans.items()} == value


@given(OBJECT, SPELLINGS, st.data())
def test_a_splice_changes_what_it_names_and_no_other_byte(
    value: dict[str, Any], spelling: dict[str, Any], data: st.DataObject
) -> None:
    raw = json.dumps(value, **spelling).encode()
    _, spans = members.read(raw)
    changed = data.draw(st.sets(st.sampled_from(sorted(value))))
    edits = [(spans[name], b'"ours"') for name in changed]
    spliced = members.splice(raw, edits, {OURS: b"1"})
    assert json.loads(spliced) == {OURS: 1} | value | dict.fromkeys(changed, "ours")
    if not changed:
        assert spliced.replace(b'"%b":1,' % OURS.encode(), b"", 1) == raw


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_sentence(raw: bytes) -> None:
    sentence = "Read."
    try:
        value, _ = members.read(raw)
        assert value == json.loads(raw)
    except members.Unreadable as refusal:
        sentence = str(refusal)
    assert sentence.endswith(".")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")), min_size=1), st.data())
def test_events_are_the_same_however_the_bytes_are_cut(texts: list[str], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from([b"\n\n", b"\r\n\r\n"]))
    stream = b"".join(b"data: " + text.encode() + end for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    framer, events = sse.Framer(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += framer.feed(stream[start:stop])
    assert b"".join(events) == stream
    assert [sse.payload(event) for event in events] == [text.encode() for text in texts]
    assert framer.tail == b""


def test_an_endless_event_is_refused_before_it_fills_the_memory() -> None:
    framer = sse.Framer()
    for _ in range(10):
        framer.feed(b"x" * 100_000)
    with pytest.raises(sse.TooLong):
        framer.feed(b"x" * 100_000)


def test_comments_and_split_data_lines_are_read_as_the_standard_says() -> None:
    assert sse.payload(b": ping\n\n") is None
    assert sse.payload(b"event: x\ndata: a\ndata:b\n\n") == b"a\nb"


@given(st.text(st.characters(codec="utf-8")), st.integers(0, 9), st.booleans(), SPELLINGS)
def test_usage_is_taken_out_and_put_in_without_touching_the_text(
    text: str, tokens: int, last: bool, spelling: dict[str, Any]
) -> None:
    counts = {"prompt_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 0}}
    parsed: dict[str, Any] = {"choices": [{"delta": {"content": text, "usage": {"a": 1}}}], "usage": counts}
    if not last:
        parsed["prompt_token_ids"] = None
    raw = b"data: " + json.dumps(parsed, **spelling).encode() + b"\n\n"
    rest = {name: value for name, value in parsed.items() if name != "usage"}
    stripped = usage.strip(raw, parsed)
    assert json.loads(stripped[6:]) == rest
    assert json.loads(usage.replace(raw, parsed, b'{"x":2}')[6:]) == {**rest, "usage": {"x": 2}}
    if last and spelling == {"separators": (",", ":")}:
        assert stripped == raw.replace(b',"usage":' + orjson.dumps(counts) + b"}", b"}")


def test_usage_in_an_unforeseen_place_is_still_taken_out() -> None:
    raw = b'{"usage": {"a": {"b": {"c": 1}}}, "choices": ["x"]}'
    assert json.loads(usage.strip(raw, json.loads(raw))) == {"choices": ["x"]}


def running(**changes: int) -> Running:
    return Running(**{"n": 1, "prompts": 1, "max_tokens": 10, "max_model_len": 100, **changes})


def test_choices_and_prompts_are_counted_apart_while_a_stream_runs() -> None:
    count = running(n=2, prompts=2)
    for index, prompt, out in ((0, 7, 1), (1, 7, 2), (2, 5, 3), (0, 7, 4), (3, 5, 1)):
        count.chunk({"prompt_tokens": prompt, "completion_tokens": out}, index)
    assert count.counts == Counts(miss=12, out=4 + 2 + 3 + 1)
    details = {"cached_tokens": 6}
    count.finish({"prompt_tokens": 12, "completion_tokens": 11, "prompt_tokens_details": details})
    assert count.counts == Counts(hit=6, miss=6, out=11)
    assert not count.clamped


@pytest.mark.parametrize(("said", "counted"), [(4, 4), (None, 0), (12, 0), ("4", 0)])
def test_reasoning_is_metered_apart_from_the_rest_of_the_answer(said: object, counted: int) -> None:
    count = running()
    count.finish({"prompt_tokens": 7, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": said}})
    apart = {REASONING: counted} if counted else {}
    assert count.counts.meters() == {IN_HIT: 0, IN_MISS: 7, OUT: 9 - counted, **apart}


def test_a_quote_holds_for_one_clock_window_and_names_the_published_sheet() -> None:
    noon = datetime(2026, 3, 4, 12, tzinfo=UTC)
    meters = {IN_HIT: Rate(1), IN_MISS: Rate(2), OUT: Rate(3)}
    dear = ClockWindow(frozenset(range(1, 8)), 12 * 60, 13 * 60, {OUT: Rate(6)})
    sheet = Sheet("m:shared", "local", "USD", noon - timedelta(days=9), meters, windows=(dear,))
    sheets = Sheets([], [sheet])
    offers = [
        quote(sheets, at=noon + timedelta(minutes=minutes), size=Size(prompt_tokens=0, max_tokens=10), answers=1)
        for minutes in (-1, 0, 59, 60)
    ]
    assert [offer.amount_pico for offer in offers] == [30, 60, 60, 30]
    assert [offer.until_ms for offer in offers][:2] == [to_ms(noon), to_ms(noon + timedelta(hours=1))]
    assert offers[1].from_ms == to_ms(noon)
    assert {offer.sheet_sha256 for offer in offers} == {sheet.sha256()}


@pytest.mark.parametrize("out", [-1, 2, 11, None, "4", 4.0, True])
def test_fault_25_a_count_that_cannot_be_is_not_believed(out: object) -> None:
    count = running()
    count.chunk({"prompt_tokens": 7, "completion_tokens": 3}, 0)
    count.chunk({"prompt_tokens": 7, "completion_tokens": out}, 0)
    assert (count.counts, count.clamped) == (Counts(miss=7, out=3), True)
    count.finish({"prompt_tokens": 7, "completion_tokens": out, "prompt_tokens_details": {"cached_tokens": 8}})
    assert count.counts == Counts(miss=7, out=3)


def test_only_numbers_of_the_engines_usage_are_kept() -> None:
    told = {"a": 1, "b": {"c": None, "d": "text"}, "e": "text", "f": [1]}
    assert usage.numbers(told) == {"a": 1, "b": {"c": None}}


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), max_size=30), st.integers(0, 2000))
def test_delivered_is_the_count_of_the_last_chunk_below_the_acknowledged_byte(
    steps: list[tuple[int, int]], acknowledged: int
) -> None:
    marks, delivered = [(0, 0)], Delivered()
    for size, out in steps:
        marks.append((marks[-1][0] + size, marks[-1][1] + out))
        delivered.marks.append(marks[-1])
    half = acknowledged // 2
    assert delivered.acknowledged(half) == max(out for end, out in marks if end <= half)
    assert delivered.acknowledged(acknowledged) == max(out for end, out in marks if end <= acknowledged)


@given(st.lists(st.binary(max_size=50)), st.data())
def test_a_journal_cut_or_flipped_anywhere_keeps_every_record_before_it(
    bodies: list[bytes], data: st.DataObject
) -> None:
    written = [records.encode(records.CLOSE, body) for body in bodies]
    whole = b"".join(written)
    assert [record.body for record in records.scan(whole)] == bodies
    cut = data.draw(st.integers(0, len(whole)))
    torn = whole[:cut]
    if cut and data.draw(st.booleans()):
        torn = torn[:-1] + bytes([torn[-1] ^ 1])
    kept = [record.body for record in records.scan(torn)]
    assert kept == bodies[: len(kept)]
    lengths = [sum(map(len, written[:count])) for count in range(len(written) + 1)]
    assert len(kept) >= sum(length < cut for length in lengths[1:])


def test_a_record_is_found_by_its_offset_or_said_to_be_damaged() -> None:
    data = b"".join(records.encode(records.CLOSE, body) for body in (b"first", b"second"))
    offsets = [record.offset for record in records.scan(data)]
    assert [records.body_at(data, offset) for offset in offsets] == [b"first", b"second"]
    with pytest.raises(ValueError, match=f"byte {offsets[1]}"):
        records.body_at(data[:-1] + b"!", offsets[1])


def call(**body: Any) -> request.Call:
    return request.parse(json.dumps({"model": "m", "messages": [{}], **body}).encode(), chat=True)


def test_max_tokens_is_spliced_where_absent_or_null_and_kept_where_given() -> None:
    for body, expected in (({}, 7), ({"max_tokens": None}, 7), ({"max_tokens": 3}, 3)):
        sent = request.for_engine(call(**body), served_name="s", max_tokens=7, cache_salt=None)
        assert json.loads(sent)["max_tokens"] == expected
    sent = request.for_engine(call(max_completion_tokens=3), served_name="s", max_tokens=3, cache_salt=None)
    assert "max_tokens" not in json.loads(sent)


def test_a_stream_always_asks_the_engine_for_running_usage() -> None:
    for body in ({}, {"stream_options": None}, {"stream_options": {"include_usage": False}}):
        sent = request.for_engine(call(stream=True, **body), served_name="s", max_tokens=7, cache_salt="x")
        options = {"include_usage": True, "continuous_usage_stats": True}
        assert json.loads(sent)["stream_options"] == options
        assert json.loads(sent)["cache_salt"] == "x"


def test_the_prompts_bound_is_its_bytes_and_at_most_the_context() -> None:
    short = call(max_tokens=5)
    assert request.size(short, 4096) == Size(len(short.raw) + 512, 5)
    long = call(messages=[{"content": "x" * 9000}])
    assert request.size(long, 4096) == Size(4096, 1024)


def test_several_prompts_are_several_answers_up_to_a_cap() -> None:
    def text(prompt: object, n: int = 1) -> request.Call:
        return request.parse(json.dumps({"model": "m", "prompt": prompt, "n": n}).encode(), chat=False)

    assert text("a").answers == text([1, 2, 3]).answers == 1
    assert text(["a", "b"], n=3).answers == text([[1], [2]], n=3).answers == 6
    with pytest.raises(Problem, match="at most 16"):
        request.size(text(["a"] * 17), 4096)


def sheet(day: int, meters: dict[str, Rate] | None = None, tenant_id: str | None = None) -> Sheet:
    prices = {"in_hit": Rate(1), "in_miss": Rate(2), "out": Rate(3)} if meters is None else meters
    return Sheet("s", "r", "USD", datetime(2026, 1, day, tzinfo=UTC), prices, tenant_id)


def test_a_quote_holds_until_the_next_sheet_of_either_owner() -> None:
    at = datetime(2026, 1, 15, tzinfo=UTC)
    offer = quote(
        Sheets([sheet(5, tenant_id="t")], [sheet(1), sheet(10), sheet(20)]), at=at, size=Size(10, 5), answers=2
    )
    assert offer.sheet == sheet(5, tenant_id="t")
    assert offer.sheet_sha256 == offer.sheet.sha256()
    assert offer.amount_pico == 10 * 2 + 2 * 5 * 3
    assert offer.from_ms == datetime(2026, 1, 10, tzinfo=UTC).timestamp() * 1000
    assert offer.until_ms == datetime(2026, 1, 20, tzinfo=UTC).timestamp() * 1000


def test_a_sheet_that_lacks_a_token_meter_prices_nothing() -> None:
    at = datetime(2026, 1, 15, tzinfo=UTC)
    with pytest.raises(Unrated):
        quote(Sheets([], [sheet(1, {"in_miss": Rate(1), "out": Rate(1)})]), at=at, size=Size(1, 1), answers=1)
    with pytest.raises(Unrated):
        quote(Sheets([], [sheet(20)]), at=at, size=Size(1, 1), answers=1)


@given(st.integers(0, 10**6), st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 4))
def test_what_is_called_affordable_is_and_one_token_more_is_not(
    free: int, prompt: int, most: int, answers: int
) -> None:
    size = Size(prompt, most)
    fits = affordable_tokens(sheet(1), free_pico=free, size=size, answers=answers)
    if fits:
        assert worst_case(sheet(1), prompt_tokens=prompt, max_tokens=fits, n=answers) <= free
    if fits < most:
        assert worst_case(sheet(1), prompt_tokens=prompt, max_tokens=fits + 1, n=answers) > free


def test_cost_is_the_sum_of_the_meters() -> None:
    assert cost(sheet(1), Counts(hit=1, miss=2, out=3)) == 1 + 4 + 9


def piece(text: str, *, chat: bool = True, usage_of: int = 3, **changes: Any) -> dict[str, Any]:
    """A stream's event as vLLM writes it."""
    said = {"delta": {"content": text}} if chat else {"text": text}
    ends = {"token_ids": None} if chat else {"stop_reason": None, "prompt_token_ids": None, "token_ids": None}
    tokens = {"prompt_tokens": 7, "total_tokens": 7 + usage_of, "completion_tokens": usage_of}
    return {
        "id": "cmpl-1",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1,
        "model": "served",
        "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": None, **ends}],
        "usage": {**tokens, "completion_tokens_details": {"reasoning_tokens": 0}} if chat else tokens,
        **changes,
    }


def written(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


@given(st.text(st.characters(codec="utf-8")), st.booleans(), st.integers(0, 10**9 - 8))
def test_a_usual_event_reads_as_its_full_parse_does(text: str, chat: bool, out: int) -> None:
    parsed = piece(text, chat=chat, usage_of=out)
    event = written(parsed)
    found = usual.read_event(event)
    assert found is not None
    assert found[1] + usual.END == usage.strip(event, parsed)
    assert (int(found[2]), int(found[3])) == (7, out)
    chunk = usual.read_chunk(b"%x\r\n%b\r\n" % (len(event), event))
    assert chunk is not None
    assert chunk.groups() == (b"%x\r\n" % len(event), *found.groups())


@pytest.mark.parametrize(
    "event",
    [
        written(piece("x", choices=[{**piece("x")["choices"][0], "finish_reason": "stop"}])),
        written(piece("x", choices=[{**piece("x")["choices"][0], "index": 1}])),
        written(piece("x", choices=[{**piece("x")["choices"][0], "logprobs": {}}])),
        written(piece("x", choices=piece("x")["choices"] * 2)),
        written(piece("x", choices=[])),
        written(piece("x", usage=None)),
        written(piece("x", usage={"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": -3})),
        written(piece("x", error={"code": 500})),
        written({"error": {"code": 500}, **piece("x")}),
        written(piece("x")) * 2,
        written(piece("x"))[:-1],
        written(piece("x")).replace(b"data: ", b"data:"),
        written(piece("x")).replace(b":null", b": null"),
        b": comment\n" + written(piece("x")),
    ],
)
def test_what_is_not_a_usual_event_is_left_to_the_full_parse(event: bytes) -> None:
    assert usual.read_event(event) is None
    assert usual.read_chunk(b"%x\r\n%b\r\n" % (len(event), event)) is None


def test_a_usual_count_follows_as_a_chunk_does_and_what_is_odd_does_not() -> None:
    count = running()
    assert not count.follows(0, b"7", 1), "the prompt is not known yet"
    count.chunk({"prompt_tokens": 7, "completion_tokens": 1}, 0)
    assert count.follows(1, b"7", 3)
    count.out = 3
    assert count.counts == Counts(miss=7, out=3)
    assert not any([count.follows(3, b"8", 4), count.follows(3, b"7", 2), count.follows(3, b"7", 11)])
    assert (count.counts, count.clamped) == (Counts(miss=7, out=3), False)
    several = running(n=2)
    several.chunk({"prompt_tokens": 7, "completion_tokens": 1}, 0)
    assert not several.follows(1, b"7", 2), "two answers are counted apart"


@given(OBJECT, SPELLINGS)
def test_a_plain_body_is_read_and_changed_as_any_other(value: dict[str, Any], spelling: dict[str, Any]) -> None:
    raw = json.dumps(value, **spelling).encode()
    plain = members.read_plain(raw)
    assert plain is None or (plain == value == members.read(raw)[0] and orjson.dumps(plain) == raw)


@pytest.mark.parametrize(
    "raw",
    [b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}', b'{"a": 1}', b"[1]", b'{"a":1e400}', b'{"a":18446744073709551616}',
     b'{"a":%b}' % (b"[" * 64 + b"]" * 64), b'{"a":NaN}'],
)  # fmt: skip
def test_a_body_that_is_not_plain_is_looked_at_closely(raw: bytes) -> None:
    assert members.read_plain(raw) is None


@pytest.mark.parametrize("body", [{}, {"max_tokens": 3}, {"max_tokens": None, "stream": True, "seed": 1}])
def test_the_engine_gets_the_same_from_a_plain_body_and_from_a_spaced_one(body: dict[str, Any]) -> None:
    whole = {"temperature": 0.5, "model": "m", "messages": [{"content": "h\u00e9"}], **body}
    sent = []
    for raw in (orjson.dumps(whole), json.dumps(whole, indent=1, ensure_ascii=False).encode()):
        parsed = request.parse(raw, chat=True)
        sent.append(request.for_engine(parsed, served_name="s", max_tokens=7, cache_salt="x"))
    plain, spaced = map(json.loads, sent)
    assert list(plain.items()) == list(spaced.items())
    assert b'"temperature":0.5,"model":"s","messages"' in sent[0]
