"""The words of Tailrace as values: ids, incarnations, marks and cursors, entries, leases, endings, limits.

All are immutable. Times are milliseconds of *broker* time since the Unix epoch, durations are seconds.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from tailrace.errors import InvalidCursor, InvalidStreamId

STREAM_ID_PATTERN = "^[A-Za-z0-9_.:-]{1,256}$"
_STREAM_ID = re.compile(r"[A-Za-z0-9_.:-]{1,256}")


def validate_stream_id(stream_id: str) -> str:
    """Give ``stream_id`` back, or raise `InvalidStreamId` (the text is the seed contract's own)."""
    if not isinstance(stream_id, str) or _STREAM_ID.fullmatch(stream_id) is None:
        shown = stream_id if isinstance(stream_id, str) else repr(stream_id)
        if len(shown) > 300:
            shown = shown[:300] + "…"
        raise InvalidStreamId(f"Invalid streamId: {shown} (must match /{STREAM_ID_PATTERN}/)")
    return stream_id


class Incarnation(NamedTuple):
    """One life of a stream id: the generation counts up from 1, the nonce (64 bits) tells twins apart."""

    generation: int
    nonce: int

    def __str__(self) -> str:
        return f"{self.generation}-{self.nonce:016x}"

    @classmethod
    @lru_cache(maxsize=4096)
    def parse(cls, text: str) -> Incarnation:
        """Read what ``str`` wrote. Raises `ValueError`."""
        match = _INCARNATION.fullmatch(text)
        if match is None:
            raise ValueError(f"not an incarnation: {text[:64]!r}")
        return cls(int(match[1]), int(match[2], 16))


_INCARNATION = re.compile(r"([1-9][0-9]{0,8})-([0-9a-f]{16})")

# stream hash 4, generation 4, nonce 8, epoch 4, entries 5, bytes 5: 30 octets, 48 characters of base32hex, which
# keeps the order of the octets. Within one stream a cursor of a later position is the greater string.
_CURSOR = struct.Struct(">4sIQI")
_CURSOR_VERSION = "1"
_CURSOR_TEXT = re.compile(_CURSOR_VERSION + "[0-9a-v]{48}")
_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_PAIRS = [first + second for first in _DIGITS for second in _DIGITS]  # the text of 10 bits


@lru_cache(maxsize=4096)
def _stream_hash(stream_id: str) -> bytes:
    return hashlib.blake2b(stream_id.encode(), digest_size=4).digest()


@lru_cache(maxsize=4096)
def _cursor_head(stream_id: str, incarnation: Incarnation, epoch: int) -> str:
    """The version and the first 20 octets: what all cursors of one lease begin with."""
    packed = _CURSOR.pack(_stream_hash(stream_id), *incarnation, epoch)
    return _CURSOR_VERSION + base64.b32hexencode(packed).decode().lower()


def _digits(number: int) -> str:
    """Five octets, big end first, as 8 digits."""
    if not 0 <= number < 1 << 40:
        raise OverflowError(f"no place in a cursor for {number}")
    return _PAIRS[number >> 30] + _PAIRS[number >> 20 & 1023] + _PAIRS[number >> 10 & 1023] + _PAIRS[number & 1023]


class Mark(NamedTuple):
    """A position in a stream: after ``entries`` entries and ``bytes`` bytes of an incarnation, seen in ``epoch``."""

    incarnation: Incarnation
    epoch: int
    entries: int
    bytes: int

    def cursor(self, stream_id: str) -> str:
        """The opaque, sortable, URL-safe text of this mark (49 characters)."""
        return _cursor_head(stream_id, self.incarnation, self.epoch) + _digits(self.entries) + _digits(self.bytes)

    @classmethod
    def parse(cls, stream_id: str, cursor: str) -> Mark:
        """Read a cursor of ``stream_id``. Raises `InvalidCursor` for anything else."""
        if _CURSOR_TEXT.fullmatch(cursor) is None:
            raise InvalidCursor(f"Not a cursor: {cursor[:80]!r}")
        packed = base64.b32hexdecode(cursor[1:].upper())
        stream_hash, generation, nonce, epoch = _CURSOR.unpack_from(packed)
        if stream_hash != _stream_hash(stream_id):
            raise InvalidCursor(f"This cursor belongs to another stream than {stream_id}")
        entries, octets = int.from_bytes(packed[20:25]), int.from_bytes(packed[25:30])
        return cls(Incarnation(generation, nonce), epoch, entries, octets)


@dataclass(frozen=True, slots=True)
class Offset:
    """A byte offset used as a cursor. Without ``incarnation`` it promises nothing across a delete."""

    bytes: int
    incarnation: Incarnation | None = None


class Entry:
    """One chunk as a reader gets it, with the cursor *after* it."""

    __slots__ = ("chunk", "mark", "stream_id")

    def __init__(self, stream_id: str, chunk: bytes, mark: Mark) -> None:
        self.stream_id = stream_id
        self.chunk = chunk
        self.mark = mark

    @property
    def cursor(self) -> str:
        return self.mark.cursor(self.stream_id)

    def __repr__(self) -> str:  # never a chunk's content
        return f"Entry({self.stream_id!r}, {len(self.chunk)} bytes, {self.mark.entries})"


class Role(StrEnum):
    PRODUCER = "producer"
    CONSUMER = "consumer"


class Status(StrEnum):
    """What a stream is now."""

    QUEUED = "queued"
    STREAMING = "streaming"
    DONE = "done"
    ERROR = "error"
    CANCELLED = "cancelled"
    PRODUCER_LOST = "producer-lost"
    EXPIRED = "expired"
    TRIMMED = "trimmed"
    MISSING = "missing"

    @property
    def seed(self) -> str:
        """The status in the seed contract's words: ``streaming | done | error | missing``."""
        return _SEED_STATUS.get(self, "error")


_SEED_STATUS = {
    Status.QUEUED: "streaming",
    Status.STREAMING: "streaming",
    Status.DONE: "done",
    Status.EXPIRED: "missing",
    Status.MISSING: "missing",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream ended. ``code`` and ``message`` say why, where it is not ``done``."""

    status: Status
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class RunRef:
    """The run that a claim executes: handler, the request's digest, the command and what a loss means."""

    handler: str
    digest: str
    command: str
    policy: str = "fail"


@dataclass(frozen=True, slots=True)
class Claim:
    """What the record that elects the producer carries. ``ttl`` and ``max_age`` in seconds."""

    owner: str
    ttl: float
    max_age: float
    content_type: str = "application/octet-stream"
    headers: tuple[tuple[str, str], ...] = ()
    run: RunRef | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class ProducerSeq:
    """An idempotent append's identity: who, in which of its lives, which number (from 0)."""

    id: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The producer's proof of ownership. Appends and finalize carry it."""

    stream_id: str
    incarnation: Incarnation
    epoch: int

    @property
    def token(self) -> str:
        return f"{self.incarnation}.{self.epoch}"


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What `acquire` gives. A producer has a lease; ``incarnation`` is the stream's current life either way."""

    role: Role
    incarnation: Incarnation
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream's state, as `/status` shows it."""

    stream_id: str
    status: Status
    code: str | None = None
    message: str | None = None
    cursor: str = ""
    bytes: int = 0
    entries: int = 0
    incarnation: Incarnation | None = None
    epoch: int = 0
    owner: str | None = None
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    run: RunRef | None = None
    created_at: int | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store refuses. Every number is a setting; None means no limit. Bytes, counts and seconds."""

    max_chunk_bytes: int | None = 256 * 1024
    max_entries: int | None = 1_000_000
    max_stream_bytes: int | None = 64 * 1024 * 1024
    max_streams: int | None = None
    max_total_bytes: int | None = None
    max_readers: int | None = 20_000
    max_reader_lag_bytes: int = 8 * 1024 * 1024
    max_stream_age: float = 24 * 3600.0
    default_ttl: float = 24 * 3600.0
    max_ttl: float = 24 * 3600.0
