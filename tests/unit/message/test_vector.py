"""The persistent sequence, against a list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.message.vector import Vector

CHANGES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4000)), max_size=40)


@given(st.integers(0, 2200), CHANGES)
def test_it_is_a_list_that_never_changes(size: int, changes: list[tuple[int, int]]) -> None:
    expected = list(range(size))
    vector = Vector(expected)
    versions = [(vector, list(expected))]
    for kind, number in changes:
        if kind == 0 and expected:
            at = number % len(expected)
            vector = vector.set(at, -number)
            expected[at] = -number
        elif kind == 1:
            vector = vector.extend(range(number % 70))
            expected += range(number % 70)
        else:
            vector = vector.append(number)
            expected.append(number)
        versions.append((vector, list(expected)))
    for kept, items in versions[:: max(1, len(versions) // 4)]:
        assert list(kept) == items
        assert len(kept) == len(items)
        assert kept == items
        assert kept[-3:] == tuple(items[-3:])
        for at in (0, len(items) // 2, -1):
            if items:
                assert kept[at] == items[at]


def test_beyond_the_third_level() -> None:
    vector: Vector[int] = Vector(range(40_000))
    changed = vector.set(33_000, -1).set(5, -2)
    assert (vector[33_000], changed[33_000], vector[5], changed[5]) == (33_000, -1, 5, -2)
    assert list(vector) == list(range(40_000))


def test_outside() -> None:
    for write in (lambda: Vector([1]).set(1, 0), lambda: Vector([1]).set(-1, 0), lambda: Vector([1])[1]):
        with pytest.raises(IndexError):
            write()
    assert Vector([1, 2]) != [1]
    assert Vector([1]) != "1"
    assert repr(Vector("ab")) == "Vector(['a', 'b'])"
