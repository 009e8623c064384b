"""Which records of a Kafka partition count, and what damaged batches are: pure, without a broker."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from tailrace.errors import CorruptRecord
from tailrace.kafka.chain import Chain
from tailrace.kafka.reading import Raw, batches_of
from tailrace.kafka.sender import Headers
from tailrace.kafka.wire import message
from tailrace.model import Claim, Incarnation
from tailrace.records import Kind, Record, Stored

ID = "a"
LIFE = Incarnation(1, 7)
CLAIM = Claim("somebody", 60.0, 3600.0, "text/plain", ())


class Message(NamedTuple):
    """A stored record as the client library gives it."""

    offset: int
    key: bytes
    value: bytes
    headers: Headers
    timestamp: int = 1


def stored_at(offset: int, expected: int, kind: Kind = Kind.CHUNKS) -> Message:
    chunks = (b"%d;" % offset,) if kind is Kind.CHUNKS else ()
    claim = CLAIM if kind is Kind.CLAIM else None
    headers, payload = message(Record(kind, ID, LIFE, 1, 0, 0, f"n{offset}", chunks, claim), expected)
    return Message(offset, ID.encode(), payload, headers)


def chain(last: int | None = 0) -> Chain:
    return Chain(last, lambda raw, error: None)


def counted(chain: Chain, log: list[Message]) -> list[Stored]:
    judged = [chain.take(raw) for raw in log]
    return [each.stored for each in judged if each is not None and each.stored is not None]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=40))
def test_all_readers_agree_wherever_a_fact_lets_them_begin(draws: list[tuple[int, int]]) -> None:
    """Writers that know the end, that slept, that send twice; readers from the beginning and from any opening."""
    log: list[Message] = []
    ends = [0]  # the position of the last record that counts, before each offset
    for offset, (how, pick) in enumerate(draws):
        expected = ends[-1] if how == 0 else ends[pick % len(ends)] if how < 3 else pick
        log.append(stored_at(offset, expected))
        ends.append(offset + 1 if expected == ends[-1] else ends[-1])
    whole = counted(chain(), log)
    assert [each.position for each in whole] == sorted(set(ends) - {0})
    assert [each.previous for each in whole] == [0, *(each.position for each in whole[:-1])][: len(whole)]
    for start in range(len(log) + 1):
        found = counted(chain(ends[start]), log[start:])
        assert found == [each for each in whole if each.position > start]


def test_a_second_copy_and_a_late_one_do_not_count() -> None:
    log = [stored_at(0, 0, Kind.CLAIM), stored_at(1, 1), stored_at(2, 1), stored_at(3, 2), stored_at(4, 1)]
    assert [each.position for each in counted(chain(), log)] == [1, 2, 4]


def test_behind_an_unknown_beginning_a_claim_does_not_count_and_the_rest_does() -> None:
    log = [stored_at(5, 0, Kind.CLAIM), stored_at(6, 3), stored_at(7, 7)]
    assert [each.position for each in counted(chain(None), log)] == [7, 8]


def test_what_was_trimmed_and_left_nothing_of_the_stream_was_nothing() -> None:
    trimmed = chain(4)
    trimmed.trim()
    trimmed.settle()
    assert trimmed.last == 4
    trimmed.trim()
    assert [each.position for each in counted(trimmed, [stored_at(9, 8)])] == [10]
    trimmed.settle()
    assert trimmed.last == 10


def test_what_cannot_be_read_is_passed_over_unless_others_follow_it() -> None:
    told: list[CorruptRecord] = []
    found = Chain(0, lambda raw, error: told.append(error))
    stranger = Message(1, ID.encode(), b"hello", [])
    log = [stored_at(0, 0, Kind.CLAIM), stranger, stored_at(2, 1), stored_at(3, 2), stored_at(4, 3)]
    assert [each.position for each in counted(found, log)] == [1, 3, 5]
    assert len(told) == 1
    assert counted(found, [Message(5, b"b", log[2].value, log[2].headers)]) == []  # another stream's key
    assert len(told) == 2
    found.miss(6, 9)
    assert [each.position for each in counted(found, [stored_at(9, 8)])] == [10]


def batch(base: int, *values: bytes) -> bytearray:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for number, value in enumerate(values):
        builder.append(number, 1, b"k", value, [])
    built = builder.build()
    built[0:8] = base.to_bytes(8, "big")
    return built


def values(raws: list[Raw]) -> list[bytes | None]:
    return [raw.value for raw in raws]


def test_batches_begin_where_asked_and_a_cut_off_end_is_left_out() -> None:
    data = bytes(batch(10, b"a", b"b", b"c") + batch(13, b"d", b"e"))
    found = list(batches_of(data, 11))
    assert [(values(each.records), each.next_offset) for each in found] == [([b"b", b"c"], 13), ([b"d", b"e"], 15)]
    assert [each.next_offset for each in batches_of(data, 13)] == [15]
    for end in range(len(data)):
        assert [each.next_offset for each in batches_of(data[:end], 10)] in ([], [13])


@pytest.mark.parametrize("place", [-1, -8, 30])
def test_a_damaged_batch_is_a_gap_that_is_known(place: int) -> None:
    damaged = batch(10, b"a", b"b")
    damaged[place] ^= 1
    first, second = batches_of(bytes(damaged + batch(12, b"c")), 11)
    assert (first.records, first.next_offset, first.unreadable) == ([], 12, (11, 12))
    assert (values(second.records), second.unreadable) == ([b"c"], None)
