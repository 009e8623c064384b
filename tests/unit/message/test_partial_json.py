"""Partial JSON against the reference: every prefix of many documents, broken texts, both dialects."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.message.partial_json import PartialJsonScanner, parse_partial_json
from tailrace.wire.jsjson import MAX_DEPTH, parse, stringify

VECTORS = Path(__file__).parents[2] / "golden" / "partial-json.json.gz"
CASES: list[Any] = json.loads(gzip.decompress(VECTORS.read_bytes()))["cases"]
TEXTS: list[str] = [case[0] for case in CASES]


@pytest.mark.parametrize("legacy", [False, True], ids=["0.3.44", "0.3.15"])
def test_every_vector(legacy: bool) -> None:
    assert len(CASES) > 2000
    wrong = []
    for text, now, *then in CASES:
        expected = then[0] if legacy and then else now
        got = parse_partial_json(text, legacy=legacy)
        if expected is None or got is None:
            agree = expected is None and got is None
        else:
            value, path, fields, partial = expected
            agree = (
                got.value == json.loads(value, parse_int=float)
                and got.state == ("complete" if path is None else "partial")
                and list(got.path) == (path or [])
                and [int(got.field_state(field) == "partial") for field in fields] == partial
            )
        if not agree:
            wrong.append((text, expected, got))
    assert not wrong, wrong[:5]


@given(st.sampled_from(TEXTS), st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_pieces_read_as_the_whole(text: str, cuts: list[int], legacy: bool) -> None:
    scanner = PartialJsonScanner(legacy=legacy)
    at = 0
    for cut in sorted(cuts):
        scanner.feed(text[at:cut])
        scanner.parse()
        at = max(at, cut)
    scanner.feed(text[at:])
    assert scanner.parse() == parse_partial_json(text, legacy=legacy)


@given(st.text(alphabet='{}[]":,\\u0eftn-+.x _🌍\ud800\n', max_size=60), st.booleans())
def test_no_text_raises(text: str, legacy: bool) -> None:
    parse_partial_json(text, legacy=legacy)
    parse_partial_json('{"a":' + text, legacy=legacy)


def test_deep_nesting_ends_in_an_answer() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000):
        parse_partial_json(text)


@pytest.mark.parametrize("ending", ["", "]", "] x"])
def test_the_deepest_text_is_read_and_a_deeper_one_is_none(ending: str) -> None:
    value: Any = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    closing = ending.replace("]", "]" * MAX_DEPTH)
    parsed = parse_partial_json("[" * MAX_DEPTH + closing)
    assert parsed is not None
    assert parsed.value == value
    assert parse_partial_json("[" * (MAX_DEPTH + 1) + closing.replace("]", "]]", 1)) is None


KEYS = st.text().filter(lambda key: key not in ("__proto__", "constructor"))  # which are refused


@given(st.recursive(st.text('[{]}"\\', max_size=3) | st.integers(), lambda inner: st.dictionaries(KEYS, inner)))
def test_a_whole_text_is_complete_and_what_it_says(value: Any) -> None:
    parsed = parse_partial_json(stringify({"a": value}))
    assert parsed is not None
    assert (parsed.state, parsed.value) == ("complete", parse(stringify({"a": value})))


def test_a_huge_number_is_a_double() -> None:
    parsed = parse_partial_json('{"a":' + "9" * 5000)
    assert parsed is not None
    assert parsed.value == {"a": float("inf")}


def test_field_states() -> None:
    parsed = parse_partial_json('{"a":{"b":"x')
    assert parsed is not None
    assert [parsed.field_state(path) for path in ([], ["a"], ["a", "b"], ["c"])] == ["partial"] * 4
    whole = parse_partial_json('{"a":1}')
    assert whole is not None
    assert whole.field_state(["anything"]) == "complete"
