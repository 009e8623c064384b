"""Records as entries of a Redis stream that npm ``assistant-stream`` reads as well, and npm's entries as records. Pure.

npm reads the fields ``c`` (a chunk), ``fin`` (``done`` or ``error``) and ``error`` of an entry and no others; an entry
with neither ``c`` nor ``fin`` it skips. So a record of ours is::

    chunks      c=<chunk> p=1 …  c=<last chunk> t=<head> [m=<facts>] [n=<how many>]
    endings     fin=done|error [error=<message>] t=<head> m=<facts>
    the others  t=<head> m=<facts>

``t`` and ``m`` are the headers ``Tailrace`` and ``Tailrace-Meta`` of `tailrace.records`. An entry without ``t`` and
``p`` is npm's: it counts where it stands, whoever holds the stream. A record's position is its last entry's id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from tailrace.errors import CorruptRecord
from tailrace.fold import State, fold
from tailrace.model import Claim, Ending, Incarnation, Status
from tailrace.records import HEADER, ID, META, SIZES, Kind, Record, Stored, decode, encode

Entry = tuple[int, dict[bytes, bytes]]  # position, fields
SEQUENCE_BITS = 24
ERRORED = "Stream errored"
_AGE = 1e9  # seconds: a stream that npm's processes write is not ours to end
_ENDS = (Kind.CLAIM, Kind.FINISH, Kind.TAKEOVER)


class View(NamedTuple):
    """What a script says of a stream: its last position (0: none), its present life and the end of the one before.

    ``token`` is npm's generation (``""``: the layout of 0.3.15); ``claimed`` is the position of an adopted life's
    claim; ``meta`` is npm's own."""

    now: int
    position: int
    incarnation: Incarnation | None
    token: str
    adopted: bool
    claimed: int
    ttl: float
    gone: int
    gone_kind: str
    gone_incarnation: str
    gone_head: bytes
    gone_facts: bytes
    meta: bytes


def position_of(at: bytes) -> int:
    ms, _, sequence = at.partition(b"-")
    return (int(ms) << SEQUENCE_BITS) + int(sequence)


def id_of(position: int) -> str:
    return f"{position >> SEQUENCE_BITS}-{position & ((1 << SEQUENCE_BITS) - 1)}"


def time_of(position: int) -> int:
    """Broker time in ms."""
    return position >> SEQUENCE_BITS


def entries_of(reply: Iterable[tuple[bytes, list[bytes]]]) -> list[Entry]:
    return [(position_of(at), dict(zip(flat[::2], flat[1::2], strict=True))) for at, flat in reply if flat]


def view_of(reply: list[bytes]) -> View:
    now, at, life, token, origin, claimed, ttl, gone, kind, gone_life, head, facts, meta = reply
    return View(
        int(now),
        position_of(at),
        Incarnation.parse(life.decode()) if life else None,
        token.decode(),
        origin == b"npm",
        position_of(claimed) if claimed else 0,
        int(ttl) / 1000 if ttl else 0.0,
        position_of(gone) if gone else 0,
        kind.decode(),
        gone_life.decode(),
        head,
        facts,
        meta,
    )


def token_of(meta: bytes | None) -> str | None:
    """The generation in npm's meta; None where there is no meta."""
    if not meta:
        return None
    try:
        value = json.loads(meta)
    except ValueError:
        return ""
    generation = value.get("generation") if isinstance(value, dict) else None
    return generation if isinstance(generation, str) else ""


def status_of(record: Record) -> str:
    """How npm's meta begins behind ``record``: the members of a JSON object that say its status."""
    if record.ending is None:
        return '"status":"streaming"'
    if record.ending.status is Status.DONE:
        return '"status":"done"'
    return f'"status":"error","error":{json.dumps(record.ending.message or ERRORED, ensure_ascii=False)}'


def fields_of(record: Record) -> tuple[list[list[bytes]], str, str]:
    """The fields and values of each entry of ``record``; its head and its facts."""
    headers, _ = encode(record)
    head, facts = headers[HEADER], headers.get(META, "")
    own = [b"t", head.encode()]
    if facts:
        own += [b"m", facts.encode()]
    if record.chunks:
        *others, last = record.chunks
        parts = [[b"c", chunk, b"p", b"1"] for chunk in others]
        count = [b"n", str(len(record.chunks)).encode()] if others else []
        return [*parts, [b"c", last, *own, *count]], head, facts
    if record.ending is not None and record.kind in _ENDS:
        if record.ending.status is Status.DONE:
            own = [b"fin", b"done", *own]
        else:
            own = [b"fin", b"error", b"error", (record.ending.message or ERRORED).encode(), *own]
    return [own], head, facts


class NeedsWhole(Exception):
    """An entry of npm's can only be placed by whoever knows all before it."""


class Assembler:
    """Own records from the entries of a stream, in order: `take` gives each when it is whole."""

    def __init__(self, stream_id: str) -> None:
        self._stream_id = stream_id
        self._parts: list[bytes] = []

    def take(self, fields: dict[bytes, bytes]) -> Record | None:
        """The record that this entry completes, or None. Call it for entries that are `own` only."""
        if b"t" not in fields:
            self._parts.append(fields.get(b"c", b""))
            return None
        chunks = [*self._parts, fields[b"c"]] if b"c" in fields else []
        self._parts = []
        return record_of(self._stream_id, fields[b"t"], fields.get(b"m", b""), chunks)


def own(fields: dict[bytes, bytes]) -> bool:
    """Whether the entry is of a record of ours."""
    return b"t" in fields or b"p" in fields


def record_of(stream_id: str, head: bytes, facts: bytes, chunks: list[bytes]) -> Record:
    """Raises `RecordError`."""
    try:
        headers = {HEADER: head.decode(), ID: stream_id}
        if facts:
            headers[META] = facts.decode()
    except UnicodeDecodeError as error:
        raise CorruptRecord(f"An entry of {stream_id} that cannot be read") from error
    if len(chunks) != 1 and chunks:
        headers[SIZES] = ",".join(str(len(chunk)) for chunk in chunks)
    return decode(headers, b"".join(chunks))


def translate(
    stream_id: str, view: View, entries: list[Entry], after: int, state: State | None
) -> tuple[list[Stored], State | None]:
    """The records behind ``after``, of which ``state`` is the fold (None: not known), and the fold with them.

    Raises `NeedsWhole` where ``state`` would be needed, and `RecordError`."""
    found: list[Stored] = []
    previous = after

    def add(position: int, record: Record) -> None:
        nonlocal state, previous
        stored = Stored(position, previous, time_of(position), record)
        found.append(stored)
        previous = position
        if state is not None:
            state = fold(state, stored)[0]

    if view.gone > after:
        add(view.gone, _gone(stream_id, view, state if after else None, whole=not after))
    if view.incarnation is None:
        return found, state
    if view.adopted and view.claimed > after:
        add(view.claimed, _claim(stream_id, view))
    assembler = Assembler(stream_id)
    for position, fields in entries:
        if own(fields):
            record = assembler.take(fields)
            if record is not None:
                add(position, record)
        else:
            if state is None:
                raise NeedsWhole
            add(position, _foreign(stream_id, position, fields, state, view.incarnation))
    return found, state


def _gone(stream_id: str, view: View, state: State | None, *, whole: bool) -> Record:
    """The end of the life before: the record that one of ours wrote, or what is to be made of a life that went without
    one. An expiry must name what its reader has read; where that is not known, the life is told as deleted."""
    if view.gone_head:
        return record_of(stream_id, view.gone_head, view.gone_facts, [])
    life = Incarnation.parse(view.gone_incarnation)
    kind = Kind(view.gone_kind)
    claim = None
    if view.gone_facts:
        claim = record_of(stream_id, f"1;claim;{life};1;0;0;-".encode(), view.gone_facts, []).claim
    epoch, entries, octets, ending = 1, 0, 0, None
    if state is not None and state.incarnation == life:
        epoch, entries, octets, ending = state.epoch, state.entries, state.bytes, state.ending
    elif not whole:
        kind = Kind.TOMBSTONE
    return Record(kind, stream_id, life, epoch, entries, octets, f"gone{view.gone}", claim=claim, ending=ending)


def _claim(stream_id: str, view: View) -> Record:
    """The claim of an adopted life. It has no owner among the members: nobody here judges who is alive in npm."""
    assert view.incarnation is not None
    claim = Claim("", view.ttl, _AGE)
    return Record(Kind.CLAIM, stream_id, view.incarnation, 1, 0, 0, f"npm{view.claimed}", claim=claim)


def _foreign(stream_id: str, position: int, fields: dict[bytes, bytes], state: State, life: Incarnation) -> Record:
    nonce = f"npm{position}"
    at = (life, max(1, state.epoch), state.entries, state.bytes)
    if b"fin" not in fields:  # npm skips an entry that has no chunk either; here it takes its place, and adds nothing
        chunks = (fields[b"c"],) if b"c" in fields else ()
        return Record(Kind.CHUNKS, stream_id, *at, nonce, chunks)
    ending = Ending(Status.DONE)
    if fields[b"fin"] != b"done":
        ending = Ending(Status.ERROR, "error", fields.get(b"error", ERRORED.encode()).decode("utf-8", "replace"))
    return Record(Kind.FINISH, stream_id, *at, nonce, ending=ending)


def last_record(stream_id: str, view: View, entries: list[Entry]) -> Stored | None:
    """The stream's last record as `Log.last` gives it. One of npm's does not say how much came before it."""
    if view.incarnation is None:
        if not view.gone:
            return None
        return Stored(view.gone, -1, time_of(view.gone), _gone(stream_id, view, None, whole=True))
    if not entries:
        return Stored(view.position, -1, time_of(view.position), _claim(stream_id, view))
    assembler, record = Assembler(stream_id), None
    for position, fields in entries:
        if own(fields):
            record = assembler.take(fields)
        else:
            record = _foreign(stream_id, position, fields, State(), view.incarnation)
    if record is None:
        raise CorruptRecord(f"The last entry of {stream_id} is a part of a record")
    return Stored(view.position, -1, time_of(view.position), record)
