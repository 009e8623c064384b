"""The fold: what a stream's records mean.

``fold(state, stored) -> (state, verdict)`` is pure and holds every rule of a stream's life. A broker adapter only
appends a record under a condition and delivers records in order; whether a record *counts* is said here and nowhere
else. So the same rules hold where the broker refuses what would not count (JetStream, by compare-and-set), where it
stores it and every reader skips it (Kafka), and in memory.

::

              claim                chunks                   expiry | tombstone
    VACANT ───────────▶ LIVE ───────────────▶ LIVE … ENDED ────────────────────▶ GONE
      │                  │ finish | takeover with an ending ▲                      │ claim
      │ anything else    └──────────────────────────────────┘                      ▼
      └───────────────▶ HEADLESS (the log lost the claim) ──tombstone | expiry──▶ GONE ──▶ LIVE (next generation)

Rules, beside the table below:

- A record counts only in the incarnation it names, and (chunks, finish) only in the epoch that holds.
- Every record names where it starts. One that starts beyond the stream's end shows a hole: the stream ends as trimmed.
- One that is the last one again (same nonce) is a repeat; a retry may be stored twice.
- A takeover counts only if its epoch is the current one plus one; the new epoch starts at the stream's end.
- An expiry counts only if nothing came after what its writer had seen: it names the entries and, of an ended stream,
  the ending. Time is never computed again here.
- A claim of a gone stream must be of the next generation; nothing is claimed over an incarnation that lives or ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import NamedTuple

from tailrace.model import Claim, Ending, Incarnation, Mark, Status
from tailrace.records import Kind, Record, Stored


class Phase(Enum):
    VACANT = auto()  # no records
    LIVE = auto()  # claimed, no ending
    ENDED = auto()  # has its ending, can be read
    GONE = auto()  # deleted or expired; free for the next generation
    HEADLESS = auto()  # records without their claim: the log lost its beginning


class Verdict(Enum):
    COUNTS = auto()
    REPEAT = auto()  # the very record that counted last, stored again
    DUPLICATE = auto()  # an idempotent append that counted before
    FENCED = auto()  # of an incarnation or epoch that does not hold
    TAKEN = auto()  # a claim on a stream that is not free
    FINALIZED = auto()  # after the ending
    STALE = auto()  # an idempotent producer's earlier life
    OUT_OF_SEQUENCE = auto()  # an idempotent append that skips a number
    OVERTAKEN = auto()  # an expiry that did not see the newest chunk
    HOLE = auto()  # starts beyond the end, or the claim is missing: the log lost records


@dataclass(frozen=True, slots=True)
class EpochStart:
    epoch: int
    entries: int
    bytes: int


_NO_PRODUCERS: Mapping[str, tuple[int, int]] = MappingProxyType({})


class State(NamedTuple):
    """A stream as its records say, up to ``position`` in the broker's log (0: none seen)."""

    phase: Phase = Phase.VACANT
    incarnation: Incarnation | None = None
    epoch: int = 0
    entries: int = 0
    bytes: int = 0
    claim: Claim | None = None
    owner: str | None = None
    ending: Ending | None = None
    epochs: tuple[EpochStart, ...] = ()
    producers: Mapping[str, tuple[int, int]] = _NO_PRODUCERS
    last_nonce: str = ""
    created_ms: int = 0
    updated_ms: int = 0
    position: int = 0

    @property
    def mark(self) -> Mark | None:
        if self.incarnation is None:
            return None
        return Mark(self.incarnation, self.epoch, self.entries, self.bytes)

    @property
    def generation(self) -> int:
        return self.incarnation.generation if self.incarnation else 0

    @property
    def expires_ms(self) -> int | None:
        """When the time to live passes (broker ms): counted from the last append or the ending."""
        if self.claim is None or self.phase not in (Phase.LIVE, Phase.ENDED):
            return None
        return self.updated_ms + int(self.claim.ttl * 1000)

    @property
    def too_old_ms(self) -> int | None:
        """When a live stream reaches its longest life (broker ms)."""
        if self.claim is None or self.phase is not Phase.LIVE:
            return None
        return self.created_ms + int(self.claim.max_age * 1000)


Step = Callable[[State, Record, int], tuple[State, Verdict]]

TRIMMED = Ending(Status.TRIMMED, "trimmed", "The log lost a part of this stream")
EXPIRED = Ending(Status.EXPIRED, "expired", "Stream expired")
DELETED = Ending(Status.MISSING, "deleted", "Stream deleted")


def fold(state: State, stored: Stored) -> tuple[State, Verdict]:
    """Apply one stored record. Pure; never raises for a record that `records.decode` accepted."""
    record = stored.record
    if record.nonce == state.last_nonce and record.incarnation == state.incarnation:
        return state._replace(position=stored.position), Verdict.REPEAT
    after, verdict = TRANSITIONS[state.phase, record.kind](state, record, stored.time_ms)
    if verdict is Verdict.COUNTS:
        return after._replace(position=stored.position, last_nonce=record.nonce), verdict
    return after._replace(position=stored.position), verdict


def _claim(state: State, record: Record, time_ms: int) -> tuple[State, Verdict]:
    if state.phase is Phase.GONE and record.incarnation.generation != state.generation + 1:
        return state, Verdict.FENCED
    assert record.claim is not None
    return State(
        phase=Phase.ENDED if record.ending else Phase.LIVE,
        incarnation=record.incarnation,
        epoch=record.epoch,
        claim=record.claim,
        owner=record.claim.owner,
        ending=record.ending,
        epochs=(EpochStart(record.epoch, 0, 0),),
        created_ms=time_ms,
        updated_ms=time_ms,
    ), Verdict.COUNTS


def _chunks(state: State, record: Record, time_ms: int) -> tuple[State, Verdict]:
    claim = state.claim
    assert claim is not None
    if record.incarnation != state.incarnation or (record.epoch != state.epoch and not claim.shared):
        return state, Verdict.FENCED
    producers = state.producers
    if record.producer is not None:
        verdict = _judge_producer(producers, record)
        if verdict is not Verdict.COUNTS:
            return state, verdict
        producers = {**producers, record.producer.id: (record.producer.epoch, record.producer.seq)}
    if not claim.shared and (record.entries, record.bytes) != (state.entries, state.bytes):
        return _hole(state, record, time_ms)
    return state._replace(
        entries=state.entries + len(record.chunks),
        bytes=state.bytes + sum(map(len, record.chunks)),
        producers=producers,
        updated_ms=time_ms,
    ), Verdict.COUNTS


def _judge_producer(producers: Mapping[str, tuple[int, int]], record: Record) -> Verdict:
    producer = record.producer
    assert producer is not None
    epoch, seq = producers.get(producer.id, (producer.epoch, -1))
    if producer.epoch < epoch:
        return Verdict.STALE
    expected = seq + 1 if producer.epoch == epoch else 0
    if producer.seq < expected:
        return Verdict.DUPLICATE
    return Verdict.COUNTS if producer.seq == expected else Verdict.OUT_OF_SEQUENCE


def _finish(state: State, record: Record, time_ms: int) -> tuple[State, Verdict]:
    if record.incarnation != state.incarnation or record.epoch != state.epoch:
        return state, Verdict.FENCED
    if (record.entries, record.bytes) != (state.entries, state.bytes):
        return _hole(state, record, time_ms)
    return state._replace(phase=Phase.ENDED, ending=record.ending, updated_ms=time_ms), Verdict.COUNTS


def _takeover(state: State, record: Record, time_ms: int) -> tuple[State, Verdict]:
    if record.incarnation != state.incarnation or record.epoch != state.epoch + 1:
        return state, Verdict.FENCED
    if record.entries > state.entries or record.bytes > state.bytes:  # one that is behind merely saw less
        return _hole(state, record, time_ms)
    return state._replace(
        phase=Phase.ENDED if record.ending else Phase.LIVE,
        epoch=record.epoch,
        epochs=(*state.epochs, EpochStart(record.epoch, state.entries, state.bytes)),
        owner=record.claim.owner if record.claim else state.owner,
        ending=record.ending,
        updated_ms=time_ms,
    ), Verdict.COUNTS


def _expiry(state: State, record: Record, time_ms: int) -> tuple[State, Verdict]:
    if record.incarnation != state.incarnation or record.epoch != state.epoch:
        return state, Verdict.FENCED
    if (record.entries, record.ending) != (state.entries, state.ending):
        return state, Verdict.OVERTAKEN
    return _gone(state, record, time_ms, EXPIRED)


def _tombstone(state: State, record: Record, time_ms: int) -> tuple[State, Verdict]:
    if record.incarnation != state.incarnation:
        return state, Verdict.FENCED
    return _gone(state, record, time_ms, DELETED)


def _gone(state: State, record: Record, time_ms: int, ending: Ending) -> tuple[State, Verdict]:
    # the claim stays known, so that an accepted run that was deleted is not run again
    gone = state._replace(
        phase=Phase.GONE,
        incarnation=record.incarnation,
        claim=record.claim or state.claim,
        ending=ending,
        updated_ms=time_ms,
    )
    return gone, Verdict.COUNTS


def _hole(state: State, record: Record, time_ms: int) -> tuple[State, Verdict]:
    return state._replace(phase=Phase.ENDED, ending=TRIMMED, updated_ms=time_ms), Verdict.HOLE


def _headless(state: State, record: Record, time_ms: int) -> tuple[State, Verdict]:
    lost = State(
        phase=Phase.HEADLESS,
        incarnation=record.incarnation,
        epoch=record.epoch,
        entries=record.end_entries,
        bytes=record.end_bytes,
        ending=TRIMMED,
        created_ms=state.created_ms or time_ms,
        updated_ms=time_ms,
    )
    return lost, Verdict.HOLE


def _headless_gone(state: State, record: Record, time_ms: int) -> tuple[State, Verdict]:
    return _gone(state, record, time_ms, EXPIRED if record.kind is Kind.EXPIRY else DELETED)


def _refuse(verdict: Verdict) -> Step:
    return lambda state, record, time_ms: (state, verdict)


_taken, _fenced = _refuse(Verdict.TAKEN), _refuse(Verdict.FENCED)


def _after_end(state: State, record: Record, time_ms: int) -> tuple[State, Verdict]:
    return state, Verdict.FINALIZED if record.incarnation == state.incarnation else Verdict.FENCED


TRANSITIONS: Mapping[tuple[Phase, Kind], Step] = MappingProxyType(
    {
        (Phase.VACANT, Kind.CLAIM): _claim,
        (Phase.VACANT, Kind.CHUNKS): _headless,
        (Phase.VACANT, Kind.FINISH): _headless,
        (Phase.VACANT, Kind.TAKEOVER): _headless,
        (Phase.VACANT, Kind.EXPIRY): _headless_gone,
        (Phase.VACANT, Kind.TOMBSTONE): _headless_gone,
        (Phase.LIVE, Kind.CLAIM): _taken,
        (Phase.LIVE, Kind.CHUNKS): _chunks,
        (Phase.LIVE, Kind.FINISH): _finish,
        (Phase.LIVE, Kind.TAKEOVER): _takeover,
        (Phase.LIVE, Kind.EXPIRY): _expiry,
        (Phase.LIVE, Kind.TOMBSTONE): _tombstone,
        (Phase.ENDED, Kind.CLAIM): _taken,
        (Phase.ENDED, Kind.CHUNKS): _after_end,
        (Phase.ENDED, Kind.FINISH): _after_end,
        (Phase.ENDED, Kind.TAKEOVER): _after_end,
        (Phase.ENDED, Kind.EXPIRY): _expiry,
        (Phase.ENDED, Kind.TOMBSTONE): _tombstone,
        (Phase.GONE, Kind.CLAIM): _claim,
        (Phase.GONE, Kind.CHUNKS): _fenced,
        (Phase.GONE, Kind.FINISH): _fenced,
        (Phase.GONE, Kind.TAKEOVER): _fenced,
        (Phase.GONE, Kind.EXPIRY): _fenced,
        (Phase.GONE, Kind.TOMBSTONE): _fenced,
        (Phase.HEADLESS, Kind.CLAIM): _taken,
        (Phase.HEADLESS, Kind.CHUNKS): _headless,
        (Phase.HEADLESS, Kind.FINISH): _headless,
        (Phase.HEADLESS, Kind.TAKEOVER): _headless,
        (Phase.HEADLESS, Kind.EXPIRY): _headless_gone,
        (Phase.HEADLESS, Kind.TOMBSTONE): _headless_gone,
    }
)
