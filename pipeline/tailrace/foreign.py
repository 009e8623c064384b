"""Streams that another program writes, as records: what the fold is given for what carries no record of ours.

A program that shares a broker's keys with Tailrace (npm ``assistant-stream`` does) claims, appends and ends without
records. Its entries count where they stand, in the incarnation and epoch that hold there: nobody can fence it. Its
claim has no owner among the members, so nobody here judges whether it lives, and no longest life: it is not ours to
end.
"""

from __future__ import annotations

from tailrace.fold import State
from tailrace.model import Claim, Ending, Incarnation, Status
from tailrace.records import Kind, Record

_AGE = 1e9  # seconds


def claim(stream_id: str, life: Incarnation, nonce: str, ttl: float) -> Record:
    """The claim of a life that another program began; ``ttl`` in seconds."""
    return Record(Kind.CLAIM, stream_id, life, 1, 0, 0, nonce, claim=Claim("", ttl, _AGE))


def chunks(state: State, stream_id: str, life: Incarnation, nonce: str, data: tuple[bytes, ...]) -> Record:
    """What it appended to a stream in ``state``; nothing, where its entry only takes a place."""
    return Record(Kind.CHUNKS, stream_id, life, max(1, state.epoch), state.entries, state.bytes, nonce, data)


def finish(state: State, stream_id: str, life: Incarnation, nonce: str, error: str | None) -> Record:
    """Its ending: an error with this message, or (None) done."""
    ending = Ending(Status.DONE) if error is None else Ending(Status.ERROR, "error", error)
    at = (life, max(1, state.epoch), state.entries, state.bytes)
    return Record(Kind.FINISH, stream_id, *at, nonce, ending=ending)


def gone(
    state: State | None, stream_id: str, life: Incarnation, nonce: str, known: Claim | None, *, expired: bool
) -> Record:
    """The end of a life that went without a record. An expiry must name what its reader has read: where that is not
    known (``state`` is None), the life is told as deleted."""
    if state is None:
        return Record(Kind.TOMBSTONE, stream_id, life, 1, 0, 0, nonce, claim=known)
    kind = Kind.EXPIRY if expired else Kind.TOMBSTONE
    at = (life, max(1, state.epoch), state.entries, state.bytes)
    return Record(kind, stream_id, *at, nonce, claim=known, ending=state.ending)
