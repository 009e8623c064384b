"""Records and their wire form.

A stream *is* its records, in order. A record travels as a broker message: a few headers of printable ASCII and a
payload. The payload of a record of chunks is the chunks' own bytes, joined, so that a broker's ordinary tools show the
answer itself; every other record has an empty payload and its facts in ``Tailrace-Meta`` (JSON).

::

    Tailrace       1;chunks;<generation>-<nonce>;<epoch>;<entries>;<bytes>;<record nonce>
    Tailrace-Id    the stream id (subjects and keys carry only its hash)
    Tailrace-Sizes 5,12,7                 the chunks' lengths, where there is not exactly one
    Tailrace-Meta  {"claim": …} | {"ending": …} | {"producer": …}

The first field is the format's version. An older one is read, a newer one refused by its number. A retry of a record is
the identical record: same nonce, epoch and start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from itertools import accumulate
from typing import Any, NamedTuple

from tailrace.errors import CorruptRecord, InvalidStreamId, UnsupportedRecord
from tailrace.model import Claim, Ending, Incarnation, ProducerSeq, RunRef, Status, validate_stream_id

VERSION = 1
Chunk = bytes
HEADER, ID, SIZES, META = "Tailrace", "Tailrace-Id", "Tailrace-Sizes", "Tailrace-Meta"


class Kind(StrEnum):
    CLAIM = "claim"  # elects the producer
    CHUNKS = "chunks"  # some chunks
    TAKEOVER = "takeover"  # a new epoch, and often the ending in the lost owner's stead
    FINISH = "finish"  # the ending, by the owner
    EXPIRY = "expiry"  # the time to live passed
    TOMBSTONE = "tombstone"  # deleted


class Record(NamedTuple):
    """One record. ``entries`` and ``bytes`` say where in the stream it starts; ``nonce`` tells this record from a
    look-alike, so that its writer knows its own again after a lost acknowledgement."""

    kind: Kind
    stream_id: str
    incarnation: Incarnation
    epoch: int
    entries: int
    bytes: int
    nonce: str
    chunks: tuple[Chunk, ...] = ()
    claim: Claim | None = None
    ending: Ending | None = None
    producer: ProducerSeq | None = None

    @property
    def end_entries(self) -> int:
        return self.entries + len(self.chunks)

    @property
    def end_bytes(self) -> int:
        return self.bytes + sum(map(len, self.chunks))


class Stored(NamedTuple):
    """A record as the broker keeps it: its place in the broker's log, the place of the stream's record before it
    (-1 where the broker does not say), and the broker's time in ms since the Unix epoch."""

    position: int
    previous: int
    time_ms: int
    record: Record


def encode(record: Record) -> tuple[dict[str, str], bytes]:
    """Headers and payload of ``record``."""
    head = (VERSION, record.kind, record.incarnation, record.epoch, record.entries, record.bytes, record.nonce)
    headers = {HEADER: ";".join(map(str, head)), ID: record.stream_id}
    if meta := _meta(record):
        headers[META] = json.dumps(meta, separators=(",", ":"))
    if len(record.chunks) == 1:
        return headers, record.chunks[0]
    if record.chunks:
        headers[SIZES] = ",".join(str(len(chunk)) for chunk in record.chunks)
    return headers, b"".join(record.chunks)


def decode(headers: Mapping[str, str] | None, payload: bytes) -> Record:
    """Read a record. Raises `UnsupportedRecord` for a newer version, `CorruptRecord` for anything else."""
    if headers is None or (head := headers.get(HEADER)) is None:
        raise CorruptRecord(f"A message without the header {HEADER}")
    if not head.startswith("1;"):
        if newer := _NEWER.match(head):
            raise UnsupportedRecord(f"A record of format version {newer[1][:20]}; this process reads up to {VERSION}")
        raise CorruptRecord(f"A record without a format version: {head[:80]!r}")
    try:
        return _decode(head, headers, payload)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidStreamId) as error:
        raise CorruptRecord(f"A record that cannot be read ({type(error).__name__}): {head[:80]!r}") from error


_KINDS = {str(kind): kind for kind in Kind}
_NEWER = re.compile(r"([2-9]|[1-9][0-9]+);")
_HEAD = re.compile(r"1;([a-z]+);([0-9a-f-]+);([0-9]{1,10});([0-9]{1,13});([0-9]{1,13});([!-:<-~]{1,64})")
_SIZES = re.compile(r"[0-9]{1,10}(,[0-9]{1,10})*")


def _decode(head: str, headers: Mapping[str, str], payload: bytes) -> Record:
    if (match := _HEAD.fullmatch(head)) is None:
        raise ValueError("fields")
    kind = _KINDS[match[1]]
    meta = json.loads(headers[META]) if META in headers else {}
    record = Record(
        kind,
        validate_stream_id(headers[ID]),
        Incarnation.parse(match[2]),
        int(match[3]),
        int(match[4]),
        int(match[5]),
        match[6],
        _split(payload, headers.get(SIZES)) if kind is Kind.CHUNKS else (),
        _claim(meta["claim"]) if "claim" in meta else None,
        _ending(meta["ending"]) if "ending" in meta else None,
        _producer(meta["producer"]) if "producer" in meta else None,
    )
    _check(record)
    return record


def _check(record: Record) -> None:
    """What the fold and the cursors rely on."""
    if not 0 < record.epoch < 1 << 32 or record.end_entries >> 40 or record.end_bytes >> 40:
        raise ValueError("position")
    if (record.kind is Kind.CLAIM and record.claim is None) or (record.kind is Kind.FINISH and record.ending is None):
        raise ValueError("facts")


def _split(payload: bytes, sizes: str | None) -> tuple[bytes, ...]:
    if sizes is None:
        return (payload,)
    if _SIZES.fullmatch(sizes) is None:
        raise ValueError("sizes")
    ends = list(accumulate(map(int, sizes.split(","))))
    if ends[-1] != len(payload):
        raise ValueError("sizes do not add up to the payload")
    starts = [0, *ends[:-1]]
    return tuple(payload[start:end] for start, end in zip(starts, ends, strict=True))


def _meta(record: Record) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if record.claim is not None:
        meta["claim"] = dump_claim(record.claim)
    if record.ending is not None:
        meta["ending"] = dump_ending(record.ending)
    if record.producer is not None:
        meta["producer"] = {"id": record.producer.id, "epoch": record.producer.epoch, "seq": record.producer.seq}
    return meta


def dump_claim(claim: Claim) -> dict[str, Any]:
    """The claim as JSON values, as records and segments carry it."""
    dumped: dict[str, Any] = {
        "owner": claim.owner,
        "ttl": claim.ttl,
        "max_age": claim.max_age,
        "content_type": claim.content_type,
        "headers": claim.headers,
    }
    if claim.shared:
        dumped["shared"] = True
    if claim.run is not None:
        run = claim.run
        dumped["run"] = {"handler": run.handler, "digest": run.digest, "command": run.command, "policy": run.policy}
    return dumped


def _claim(value: dict[str, Any]) -> Claim:
    run = RunRef(**{name: _text(text) for name, text in value["run"].items()}) if "run" in value else None
    headers = tuple((_text(name), _text(text)) for name, text in value["headers"])
    return Claim(
        _text(value["owner"]),
        _seconds(value["ttl"]),
        _seconds(value["max_age"]),
        _text(value["content_type"]),
        headers,
        run,
        value.get("shared", False) is True,
    )


def _producer(value: dict[str, Any]) -> ProducerSeq:
    return ProducerSeq(_text(value["id"]), _count(value["epoch"]), _count(value["seq"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("count")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _LONGEST:
        raise TypeError("seconds")
    return float(value)


_LONGEST = 1e11  # seconds, some 3000 years: what a sum of milliseconds bears everywhere


def dump_ending(ending: Ending) -> dict[str, Any]:
    """The ending as JSON values."""
    return {"status": ending.status, "code": ending.code, "message": ending.message}


def _ending(value: dict[str, Any]) -> Ending:
    code, message = value.get("code"), value.get("message")
    return Ending(
        Status(value["status"]),
        None if code is None else _text(code),
        None if message is None else _text(message),
    )


load_claim, load_ending = _claim, _ending
