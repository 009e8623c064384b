"""JSON as JavaScript has it, against what Node recorded."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.message.chunks import UNDEFINED
from tailrace.wire.errors import InvalidJson, JsonTooDeep, NotJson
from tailrace.wire.jsjson import MAX_DEPTH, join_surrogates, number, parse, stringify, stringify_bytes

RECORDED = json.loads((Path(__file__).parents[2] / "golden/json.json").read_text())


def test_doubles_print_as_in_javascript() -> None:
    assert RECORDED["numbers"]
    for hexed, text in RECORDED["numbers"]:
        assert number(struct.unpack(">d", bytes.fromhex(hexed))[0]) == text, hexed


@pytest.mark.parametrize(("text", "expected"), RECORDED["texts"])
def test_a_text_is_read_and_written_as_in_javascript(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(InvalidJson):
            parse(text)
    else:
        assert stringify(parse(text)) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (UNDEFINED, "undefined"),
        ({"a": UNDEFINED, "b": [UNDEFINED, None]}, '{"b":[null,null]}'),
        (2**53, "9007199254740992"),
        (2**53 + 1, "9007199254740992"),
        (-(2**64), "-18446744073709552000"),
        (10**400, "null"),
        (True, "true"),
        ({"b": 1, "10": 2, "9": 3, "٣": 4}, '{"9":3,"10":2,"b":1,"٣":4}'),
        ("\ud800", '"\\ud800"'),
        ("\ud83c" + "\udf0d", '"🌍"'),
        ("\udf0d\ud83c", '"\\udf0d\\ud83c"'),
        ({"\ud800": (1, 2)}, '{"\\ud800":[1,2]}'),
    ],
)
def test_values_that_python_has_and_json_has_not(value: object, text: str) -> None:
    assert stringify(value) == text
    assert stringify_bytes(value) == text.encode()


def test_what_is_no_json_is_refused_by_type() -> None:
    for value in (b"x", {1}, {1: 2}, object()):
        with pytest.raises(NotJson):
            stringify(value)


def test_depth_has_one_limit_in_both_directions() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert stringify(parse(deepest)) == deepest
    for text in ("[" + deepest + "]", "[" * 100_000, '{"a":' * 100_000, '["]]]]",' + deepest + "]"):
        with pytest.raises(JsonTooDeep):
            parse(text)
    value: object = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(JsonTooDeep):
        stringify(value)
    assert parse(json.dumps("[" * 1000)) == "[" * 1000


def test_very_long_numbers_are_read() -> None:
    assert parse("9" * 5000) == float("inf")
    assert parse("0." + "1" * 5000) == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    "text",
    ['{"__proto__":1}', '[{"a":{"\\u005f_proto__":1}}]', '{"constructor":{"prototype":1}}'],
)
def test_prototype_keys_are_refused_only_when_asked(text: str) -> None:
    assert parse(text)
    with pytest.raises(InvalidJson, match="Object contains forbidden prototype property"):
        parse(text, secure=True)


def test_harmless_mentions_of_prototypes_pass() -> None:
    text = '{"constructor":{"a":1},"b":["__proto__",{"prototype":1}]}'
    assert stringify(parse("\ufeff" + text, secure=True)) == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_writing_what_was_read_gives_the_same_text(value: object) -> None:
    text = stringify(value)
    assert stringify(parse(text)) == text


@given(st.text(st.characters(codec=None)))
def test_any_text_becomes_valid_utf8_and_comes_back(text: str) -> None:
    assert parse(stringify_bytes(text).decode()) == join_surrogates_or_same(text)


def join_surrogates_or_same(text: str) -> str:
    return join_surrogates(text)
