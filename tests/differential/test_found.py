"""What the fuzz has found, each as a plain test that needs no Node."""

from __future__ import annotations

import pytest

from tailrace.message.dialect import Dialect
from tailrace.message.errors import InvalidUpdate
from tailrace.message.partial_json import parse_partial_json
from tailrace.message.state import StateAccumulator
from tailrace.wire.lines import TextDecoder


def test_half_a_surrogate_in_utf8_is_bad_at_its_second_byte() -> None:
    """The web's decoder does not wait for the third byte; a delta of plain text shows when a character came."""
    decoder = TextDecoder()
    assert [decoder.feed(bytes([byte])) for byte in b"\xed\xa0\xbca\xed\x9f\xbf"] == [
        "",
        "��",
        "�",
        "a",
        "",
        "",
        "\ud7ff",
    ]
    whole = TextDecoder()
    assert whole.feed(b"\xed\xa0\xbc") + whole.feed(b"\xed\xbc") + whole.feed(b"\x8d") == "�" * 6


def test_an_operation_without_a_type_is_named_as_upstream_names_it() -> None:
    with pytest.raises(InvalidUpdate, match="Invalid operation type: undefined"):
        StateAccumulator().append([{"path": []}])


@pytest.mark.parametrize(
    ("dialect", "message"),
    [("0.3.15", r"Expected array index at \[__proto__\]"), ("0.3.44", "Unsafe gorp path segment: __proto__")],
)
def test_an_array_has_no_prototype_either(dialect: Dialect, message: str) -> None:
    with pytest.raises(InvalidUpdate, match=message):
        StateAccumulator([1], dialect=dialect).append([{"type": "set", "path": ["__proto__"], "value": 1}])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_character_of_two_units_after_a_number_or_a_literal_is_read_twice(legacy: bool) -> None:
    for text in ("[1\U0001f30d", "[1e\U0001f30d", "[true\U0001f30d", '[1,{"a":[2\U0001f30d'):
        assert parse_partial_json(text, legacy=legacy) is None
    parsed = parse_partial_json("[1\u00e9", legacy=legacy)
    assert parsed is not None
    assert parsed.value == [1]
