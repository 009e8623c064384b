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

from tailrace import foreign
from tailrace.decide import ends_a_life
from tailrace.errors import CorruptRecord
from tailrace.fold import State, Verdict, fold
from tailrace.model import Incarnation, Status
from tailrace.records import HEADER, ID, META, SIZES, Record, Stored, decode, encode

Entry = tuple[int, dict[bytes, bytes]]  # position, fields
SEQUENCE_BITS = 24
ERRORED = "Stream errored"


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


class Meta(NamedTuple):
    """What npm's meta says. ``token`` is None where there is none."""

    token: str | None = None
    ended: bool = False


def meta_of(text: bytes | None) -> Meta:
    if not text:
        return Meta()
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return Meta("")
    generation = value.get("generation")
    return Meta(generation if isinstance(generation, str) else "", value.get("status") in ("done", "error"))


def status_of(record: Record) -> str:
    """How npm's meta begins behind ``record``: the members of a JSON object that say its status."""
    if record.ending is None:
        return '"status":"streaming"'
    if record.ending.status is Status.DONE:
        return '"status":"done"'
    return f'"status":"error","error":{json.dumps(_message(record.ending.message), ensure_ascii=False)}'


def _message(message: str | None) -> str:
    """As npm stores it: half of a surrogate pair becomes U+FFFD."""
    return (message or ERRORED).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


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
    if record.ending is not None and not ends_a_life(record):
        if record.ending.status is Status.DONE:
            own = [b"fin", b"done", *own]
        else:
            own = [b"fin", b"error", b"error", _message(record.ending.message).encode(), *own]
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
        add(view.gone, _gone(stream_id, view, state))
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
            add(position, _npm(stream_id, position, fields, state, view.incarnation))
    return found, state


def _gone(stream_id: str, view: View, state: State | None) -> Record:
    """The end of the life before: the record that one of ours wrote, or what is made of a life that went without. Who
    missed what came before an expiry cannot read it any more: then it names what was read."""
    life, known = Incarnation.parse(view.gone_incarnation), None
    if state is not None and state.incarnation not in (None, life):
        state = None
    if view.gone_head:
        record = record_of(stream_id, view.gone_head, view.gone_facts, [])
        if state is None or fold(state, Stored(view.gone, -1, time_of(view.gone), record))[1] is Verdict.COUNTS:
            return record
        known = record.claim
    elif view.gone_facts:
        known = record_of(stream_id, f"1;claim;{life};1;0;0;-".encode(), view.gone_facts, []).claim
    return foreign.gone(state, stream_id, life, f"gone{view.gone}", known, expired=view.gone_kind == "expiry")


def _claim(stream_id: str, view: View) -> Record:
    assert view.incarnation is not None
    return foreign.claim(stream_id, view.incarnation, f"npm{view.claimed}", view.ttl)


def _npm(stream_id: str, position: int, fields: dict[bytes, bytes], state: State, life: Incarnation) -> Record:
    nonce = f"npm{position}"
    if b"fin" not in fields:  # npm skips an entry that has no chunk either
        return foreign.chunks(state, stream_id, life, nonce, (fields[b"c"],) if b"c" in fields else ())
    if fields[b"fin"] == b"done":
        return foreign.finish(state, stream_id, life, nonce, None)
    return foreign.finish(
        state, stream_id, life, nonce, fields.get(b"error", ERRORED.encode()).decode("utf-8", "replace")
    )


def last_record(stream_id: str, view: View, entries: list[Entry]) -> Stored | None:
    """The stream's last record as `Log.last` gives it. One of npm's does not say how much came before it."""
    if view.incarnation is None:
        if not view.gone:
            return None
        return Stored(view.gone, -1, time_of(view.gone), _gone(stream_id, view, State()))
    if not entries:
        return Stored(view.position, -1, time_of(view.position), _claim(stream_id, view))
    assembler, record, life = Assembler(stream_id), None, view.incarnation
    for position, fields in entries:
        record = assembler.take(fields) if own(fields) else _npm(stream_id, position, fields, State(), life)
    if record is None:
        raise CorruptRecord(f"The last entry of {stream_id} is a part of a record")
    return Stored(view.position, -1, time_of(view.position), record)
