"""What a store remembers of its leases, and forgets."""

from __future__ import annotations

import pytest

from tailrace.errors import StreamFinalized, StreamSuperseded, TailraceError
from tailrace.fold import State
from tailrace.held import MOST_FENCED, Held
from tailrace.memory import MemoryBroker, MemoryLog
from tailrace.model import Incarnation, Lease, Limits
from tailrace.writer import Writer


def writer(stream_id: str, generation: int = 1, epoch: int = 1) -> Writer:
    lease = Lease(stream_id, Incarnation(generation, "0123456789abcdef"), epoch)
    return Writer(MemoryLog(MemoryBroker()), Limits(), lease, State(), lambda _: None)


def over(held: Held, one: Writer, failure: TailraceError) -> None:
    one.failure = failure
    held.release(one)


def test_a_superseded_lease_is_remembered_until_the_stream_is_acquired_anew() -> None:
    held, old, new = Held(), writer("a"), writer("a", generation=2)
    held.acquired(old)
    over(held, old, StreamSuperseded("taken over"))
    assert held.lease("a") == old.lease
    assert held.writer("a", None) is None
    held.acquired(new)
    assert held.writer("a", None) is new
    over(held, new, StreamFinalized("done"))
    assert held.lease("a") is None
    assert len(held) == 0


@pytest.mark.parametrize("again", [False, True])
def test_the_oldest_superseded_leases_are_forgotten(again: bool) -> None:
    held, writers = Held(), [writer(f"s{number}") for number in range(MOST_FENCED + 10)]
    for one in writers:
        held.acquired(one)
        over(held, one, StreamSuperseded("taken over"))
        if again:  # somebody else served it by name, and is through, too
            held.serve(one)
            over(held, one, StreamSuperseded("taken over"))
    assert [number for number, one in enumerate(writers) if held.lease(one.lease.stream_id) is None] == [*range(10)]
    assert len(held) == 0


def test_a_superseded_lease_whose_stream_ended_is_forgotten() -> None:
    held, one = Held(), writer("a")
    held.acquired(one)
    over(held, one, StreamSuperseded("taken over"))
    over(held, one, StreamFinalized("done"))
    assert held.lease("a") is None
    for number in range(MOST_FENCED + 1):
        other = writer(f"s{number}")
        held.acquired(other)
        over(held, other, StreamSuperseded("taken over"))
    assert len(held) == 0
