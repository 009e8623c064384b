"""Decide, then act: which record an intent becomes, what a refusal means, where a reader starts.

The fold says what stored records mean; this module says what to store next. Both are pure. A store's loop is always:
fold what the broker has, decide, append under the condition that nothing came since, and on a refusal fold and decide
again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto

from tailrace.errors import (
    CursorGone,
    InvalidCursor,
    LimitExceeded,
    OffsetOutOfRange,
    ProducerLost,
    StreamCancelled,
    StreamDeleted,
    StreamEnded,
    StreamErrored,
    StreamExpired,
    StreamFinalized,
    StreamNotFound,
    StreamSuperseded,
    StreamTooLarge,
    StreamTrimmed,
    TooManyEntries,
)
from tailrace.fold import DELETED, TRIMMED, Phase, State
from tailrace.model import (
    Acquisition,
    Claim,
    Ending,
    Incarnation,
    Lease,
    Limits,
    Mark,
    Offset,
    ProducerSeq,
    Role,
    Status,
    StreamInfo,
)
from tailrace.records import Kind, Record, Stored

FIRST_EPOCH = 1
LOST = Ending(Status.PRODUCER_LOST, "producer-lost", "The producer of this stream was lost")
TOO_OLD = Ending(Status.ERROR, "stream-too-old", "The stream reached its longest life")


def claim(state: State, stream_id: str, nonce: int, wanted: Claim, ending: Ending | None = None) -> Record | None:
    """The claim to write, or None where the stream is taken (the caller is a consumer).

    Raises `StreamDeleted` where the claim is for a command whose run was here before and is deleted or expired: an
    accepted run that ended never runs again.
    """
    if state.phase not in (Phase.VACANT, Phase.GONE):
        return None
    before = state.claim.run if state.claim else None
    if wanted.run is not None and before is not None and before.command == wanted.run.command:
        raise StreamDeleted(f"The run {wanted.run.command} of {stream_id} ended and is gone")
    life = Incarnation(state.generation + 1, nonce)
    return Record(Kind.CLAIM, stream_id, life, FIRST_EPOCH, 0, 0, f"{nonce:016x}", claim=wanted, ending=ending)


def acquired(state: State, stream_id: str, record: Record | None) -> Acquisition:
    """The role that ``state`` gives the process that wrote ``record`` (None: it wrote none)."""
    if record is not None and record.incarnation == state.incarnation:
        return Acquisition(Role.PRODUCER, record.incarnation, Lease(stream_id, record.incarnation, record.epoch))
    assert state.incarnation is not None
    return Acquisition(Role.CONSUMER, state.incarnation)


def require_lease(state: State, lease: Lease) -> None:
    """Raise what an append with this lease must raise, if the lease does not hold (the seed contract's texts)."""
    if state.phase in (Phase.VACANT, Phase.GONE):
        raise StreamNotFound(f"Stream not found: {lease.stream_id}")
    if state.incarnation != lease.incarnation or state.epoch > lease.epoch:
        raise StreamSuperseded(f"Stream superseded by a new acquisition: {lease.stream_id}")
    if state.phase is not Phase.LIVE:
        raise StreamFinalized(f"Stream already finalized: {lease.stream_id}")


def require_stream(state: State, stream_id: str) -> None:
    """Raise `StreamNotFound` where there is no stream, `StreamFinalized` where it has its ending."""
    if state.phase in (Phase.VACANT, Phase.GONE):
        raise StreamNotFound(f"Stream not found: {stream_id}")
    if state.phase is not Phase.LIVE:
        raise StreamFinalized(f"Stream already finalized: {stream_id}")


def owns(state: State, lease: Lease) -> bool:
    """Whether the lease holds: its stream lives in its incarnation and epoch."""
    return state.phase is Phase.LIVE and (state.incarnation, state.epoch) == (lease.incarnation, lease.epoch)


def chunks(
    mark: Mark, stream_id: str, nonce: str, data: Sequence[bytes], producer: ProducerSeq | None = None
) -> Record:
    """The record that appends ``data`` at ``mark``."""
    at = (mark.incarnation, mark.epoch, mark.entries, mark.bytes)
    return Record(Kind.CHUNKS, stream_id, *at, nonce, tuple(data), producer=producer)


def finish(mark: Mark, stream_id: str, nonce: str, ending: Ending) -> Record:
    """The owner's ending."""
    return Record(Kind.FINISH, stream_id, mark.incarnation, mark.epoch, mark.entries, mark.bytes, nonce, ending=ending)


def takeover(
    state: State, stream_id: str, nonce: str, lost: Mark | None, ending: Ending | None, claim: Claim | None = None
) -> Record | None:
    """The takeover that ends epoch ``lost`` (its incarnation and epoch), or None where that epoch no longer holds."""
    if state.phase is not Phase.LIVE or state.incarnation is None:
        return None
    if lost is not None and (lost.incarnation, lost.epoch) != (state.incarnation, state.epoch):
        return None
    at = (state.incarnation, state.epoch + 1, state.entries, state.bytes)
    return Record(Kind.TAKEOVER, stream_id, *at, nonce, claim=claim, ending=ending)


def takeover_of(
    state: State, stream_id: str, nonce: str, lost_epoch: int, ending: Ending | None, owner: str
) -> Record | None:
    """The takeover of ``lost_epoch`` by ``owner``, or None where another epoch holds."""
    if state.mark is None or state.claim is None or state.epoch != lost_epoch:
        return None
    return takeover(state, stream_id, nonce, state.mark, ending, replace(state.claim, owner=owner))


def ends_when_lost(state: State) -> bool:
    """Whether a reader's process may end this stream when its owner is lost; a run that others continue it may not,
    nor a stream whose owner is no member (another program's)."""
    run = state.claim.run if state.claim else None
    return state.phase is Phase.LIVE and bool(state.owner) and (run is None or run.policy == "fail")


def newer_sign_of_life(judged: State, state: State) -> bool:
    """Whether the stream moved since its owner was judged lost: the judgement is withdrawn."""
    return state.position != judged.position


def rewound(state: State, last: Stored | None) -> bool:
    """Whether a log whose last record is ``last`` has lost records that ``state`` was folded from."""
    return state.position > 0 and (last is None or last.position < state.position)


def outlived(state: State, last: Stored) -> bool:
    """Whether a log whose last record is ``last`` went on to a later life than ``state`` knows."""
    return last.record.incarnation.generation > state.generation


def may_be_sealed(last: Stored) -> bool:
    """Whether a stream that ends in this record may have segments."""
    return last.record.ending is not None and last.record.kind is not Kind.CLAIM


def sealable(state: State) -> bool:
    """Whether the stream can be sealed: ended, whole, and still there."""
    return state.phase is Phase.ENDED and state.claim is not None and state.ending is not TRIMMED


def ending(status: str, message: str | None, code: str | None) -> Ending:
    """The ending that a finalize asks for. Raises `ValueError` for a status that is none."""
    if status not in ("done", "error", "cancelled"):
        raise ValueError(f"finalize takes done, error or cancelled, not {status!r}")
    if status == "done":
        return Ending(Status.DONE)
    return Ending(Status(status), code or status, message)


def expiry(state: State, stream_id: str, nonce: str, now_ms: int) -> Record | None:
    """The record that a stream whose time has passed is owed at broker time ``now_ms``: an expiry behind its time to
    live, the too-old ending behind its longest life, else None."""
    if state.incarnation is None:
        return None
    at = (state.incarnation, state.epoch, state.entries, state.bytes)
    if state.expires_ms is not None and now_ms >= state.expires_ms:
        return Record(Kind.EXPIRY, stream_id, *at, nonce, claim=state.claim, ending=state.ending)
    if state.too_old_ms is not None and now_ms >= state.too_old_ms:
        return takeover(state, stream_id, nonce, None, TOO_OLD)
    return None


def due_ms(state: State) -> int | None:
    """The broker time at which `expiry` will want a record."""
    due = [at for at in (state.expires_ms, state.too_old_ms) if at is not None]
    return min(due, default=None)


def tombstone(state: State, stream_id: str, nonce: str, incarnation: Incarnation | None = None) -> Record | None:
    """The record that deletes the current incarnation (or only ``incarnation``), or None where there is none."""
    if state.phase in (Phase.VACANT, Phase.GONE) or state.incarnation is None:
        return None
    if incarnation is not None and incarnation != state.incarnation:
        return None
    at = (state.incarnation, state.epoch, state.entries, state.bytes)
    return Record(Kind.TOMBSTONE, stream_id, *at, nonce, claim=state.claim)


class Outcome(Enum):
    """What became of a record whose append was refused or got no answer, seen from the stream's last record."""

    LANDED = auto()  # it is the last record: stored
    RESEND = auto()  # nothing newer came: send the identical record again
    MOVED = auto()  # a newer record that is not ours: fold and decide again
    REWOUND = auto()  # the log ends before what was acknowledged to us: it lost records


def outcome(sent: Record, expected: int, last: Stored | None) -> Outcome:
    """Judge ``sent``, appended on the condition that the stream's last record was at position ``expected`` (0: none),
    by the stream's last record as the broker's leader has it now."""
    position = last.position if last is not None else 0
    if last is not None and last.record.nonce == sent.nonce and last.record.incarnation == sent.incarnation:
        return Outcome.LANDED
    if position == expected:
        return Outcome.RESEND
    return Outcome.MOVED if position > expected else Outcome.REWOUND


def check_growth(limits: Limits, stream_id: str, entries: int, octets: int, size: int) -> LimitExceeded | None:
    """The limit that one more chunk of ``size`` bytes would break, on a stream that has ``entries`` and ``octets``."""
    if limits.max_entries is not None and entries >= limits.max_entries:
        return TooManyEntries(f"Stream exceeded maxEntriesPerStream: {stream_id}")
    if limits.max_stream_bytes is not None and octets + size > limits.max_stream_bytes:
        return StreamTooLarge(
            f"Stream exceeded maxStreamBytes: {stream_id} ({octets + size} > {limits.max_stream_bytes})"
        )
    return None


def start_of(state: State, stream_id: str, start: str | Offset, ends: Sequence[int]) -> tuple[int, int]:
    """Where a reader of ``state`` starts: the number of entries to skip, and the bytes to skip of the next one.

    ``start`` is a cursor (``""``: the beginning) or an `Offset`; ``ends[i]`` is the byte position after entry i. An
    offset beyond the end of a live stream gives a skip that later entries consume. Raises `InvalidCursor`,
    `CursorGone` (another incarnation, or bytes that the log lost) and `OffsetOutOfRange` (beyond an ended stream).
    """
    if isinstance(start, Offset):
        return _start_of_offset(state, stream_id, start, ends)
    if start == "":
        return 0, 0
    mark = Mark.parse(stream_id, start)
    if mark.incarnation != state.incarnation:
        raise _gone(state, stream_id)
    rewritten = any(later.epoch > mark.epoch and later.entries < mark.entries for later in state.epochs)
    known = ends[mark.entries - 1] if 0 < mark.entries <= len(ends) else (0 if mark.entries == 0 else None)
    if rewritten or known != mark.bytes:
        raise CursorGone(
            f"The log of {stream_id} no longer holds the bytes before this cursor", incarnation=str(state.incarnation)
        )
    return mark.entries, 0


def _start_of_offset(state: State, stream_id: str, start: Offset, ends: Sequence[int]) -> tuple[int, int]:
    if start.incarnation is not None and start.incarnation != state.incarnation:
        raise _gone(state, stream_id)
    if start.bytes < 0:
        raise InvalidCursor(f"Not an offset: {start.bytes}")
    if start.bytes > state.bytes and state.phase is not Phase.LIVE:
        raise OffsetOutOfRange(
            f"Offset {start.bytes} is beyond the end of {stream_id} ({state.bytes} bytes)", length=state.bytes
        )
    # the first entry that ends behind the offset; empty chunks before it hold nothing that the reader lacks
    index = bisect_left(ends, start.bytes + 1)
    before = ends[index - 1] if index else 0
    return index, start.bytes - before


def epoch_of(state: State, index: int) -> int:
    """The epoch in which entry ``index`` was accepted."""
    for start in reversed(state.epochs):
        if start.entries <= index:
            return start.epoch
    return FIRST_EPOCH


def _gone(state: State, stream_id: str) -> CursorGone:
    current = str(state.incarnation) if state.incarnation else ""
    return CursorGone(f"This position belongs to another incarnation of {stream_id}", incarnation=current)


def is_there(state: State) -> bool:
    """Whether the stream has a life that can be read, ended or not."""
    return state.phase in (Phase.LIVE, Phase.ENDED, Phase.HEADLESS)


def follows(state: State, incarnation: Incarnation) -> bool:
    """Whether a reader of ``incarnation`` still reads this stream (and not the life after it)."""
    return state.incarnation == incarnation and is_there(state)


def end_of_life(state: State) -> Ending:
    """What a reader is told whose life of the stream has gone, ``state`` being what it is now."""
    return state.ending if state.phase is Phase.GONE and state.ending is not None else DELETED


def info(state: State, stream_id: str) -> StreamInfo:
    """The state as a status report."""
    mark, claim = state.mark, state.claim
    if state.phase is Phase.VACANT or mark is None:
        return StreamInfo(stream_id, Status.MISSING)
    status = Status.STREAMING if state.ending is None else state.ending.status
    return StreamInfo(
        stream_id,
        status,
        state.ending.code if state.ending else None,
        state.ending.message if state.ending else None,
        mark.cursor(stream_id),
        state.bytes,
        state.entries,
        state.incarnation,
        state.epoch,
        state.owner,
        claim.content_type if claim else None,
        claim.headers if claim else (),
        claim.run if claim else None,
        state.created_ms,
        state.expires_ms,
    )


def begins_a_life(record: Record) -> bool:
    """Whether the record begins a stream's life, where it counts."""
    return record.kind is Kind.CLAIM


def ends_a_life(record: Record) -> bool:
    """Whether nothing of the stream is left to read behind this record, which its log took."""
    return record.kind in (Kind.TOMBSTONE, Kind.EXPIRY)


def glance(stored: Stored) -> StreamInfo | None:
    """What a stream's last record alone tells of it, or None where there is no stream any more."""
    record = stored.record
    if ends_a_life(record):
        return None
    mark = Mark(record.incarnation, record.epoch, record.end_entries, record.end_bytes)
    claim = record.claim
    return StreamInfo(
        record.stream_id,
        Status.STREAMING if record.ending is None else record.ending.status,
        record.ending.code if record.ending else None,
        record.ending.message if record.ending else None,
        mark.cursor(record.stream_id),
        mark.bytes,
        mark.entries,
        mark.incarnation,
        mark.epoch,
        claim.owner if claim else None,
        claim.content_type if claim else None,
    )


_ENDINGS: dict[Status, type[StreamEnded]] = {
    Status.ERROR: StreamErrored,
    Status.CANCELLED: StreamCancelled,
    Status.PRODUCER_LOST: ProducerLost,
    Status.EXPIRED: StreamExpired,
    Status.TRIMMED: StreamTrimmed,
    Status.MISSING: StreamDeleted,
}


def ending_error(ending: Ending) -> StreamEnded | None:
    """What a reader raises at this ending, None for ``done``."""
    if ending.status is Status.DONE:
        return None
    kind = _ENDINGS[ending.status]
    return kind(ending.message or "Stream errored", code=ending.code or kind.code)
