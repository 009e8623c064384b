"""The one error tree.

Every error has a stable ``code`` (what a program compares), a message (what happened) and a ``hint`` (what to do).
Adapters translate what a client library raises, at their edge, with ``from``; nothing else crosses a layer.

::

    TailraceError
    ├── InvalidStreamId       invalid-id           the id does not match the pattern
    ├── StreamNotFound        missing              no such stream (never made, deleted or expired)
    ├── StreamSuperseded      missing              the lease belongs to an earlier acquisition or epoch
    ├── StreamFinalized       finalized            the stream has its ending
    ├── LeaseRequired         lease-required       no lease was given and this store acquired none
    ├── StreamEnded           (a read or a wait met an ending that is not ``done``)
    │   ├── StreamErrored     error | own code     the producer's own message
    │   ├── StreamCancelled   cancelled            somebody cancelled the run
    │   ├── StreamExpired     expired              its time to live passed
    │   ├── ProducerLost      producer-lost        the process that produced it died
    │   ├── StreamTrimmed     trimmed              the log lost records: what follows cannot be trusted
    │   └── StreamDeleted     deleted              somebody deleted it
    ├── LimitExceeded         (a setting says no; each names the setting)
    │   ├── ChunkTooLarge     chunk-too-large
    │   ├── TooManyEntries    too-many-entries
    │   ├── StreamTooLarge    stream-too-large
    │   ├── StreamTooOld      stream-too-old
    │   ├── TooManyStreams    too-many-streams
    │   ├── StorageFull       storage-full
    │   ├── TooManyReaders    too-many-readers
    │   ├── TooMuchPending    too-much-pending     a handler writes faster than the broker stores
    │   ├── TtlTooLong        ttl-too-long
    │   └── SlowReader        slow-reader          carries the cursor to resume from
    ├── CursorError
    │   ├── InvalidCursor     invalid-cursor       not a cursor, or one of another stream
    │   ├── CursorGone        cursor-gone          of another incarnation, or of bytes that the log lost
    │   └── OffsetOutOfRange  offset-out-of-range  beyond the end of an ended stream
    ├── RecordError
    │   ├── UnsupportedRecord unsupported-record   written by a newer version
    │   └── CorruptRecord     corrupt-record       not one of our records
    ├── WireError             wire-error           bytes that are no answer, or an answer that does not become
    │   │                                          bytes: the tree goes on in wire/errors.py
    │   └── LineTooLong       line-too-long        a LimitExceeded as well
    ├── MessageError          message-error        goes on in message/errors.py
    ├── InvalidChunk          invalid-chunk        a JSON value that is no chunk (message/chunks.py)
    ├── RunError
    │   ├── UnknownHandler    unknown-handler      carries the known ones
    │   ├── InvalidInput      invalid-input        the handler's input model rejects it; carries the paths
    │   ├── RunTooLarge       run-too-large        its input does not fit into one message of the broker
    │   ├── UnknownFormat     unknown-format       nobody knows it, or the handler does not serve it
    │   ├── RunConflict       run-conflict         the id is taken by another request
    │   ├── NoWorkers         no-workers           nobody alive takes this handler's runs
    │   └── ClaimTimeout      claim-timeout        queued, and not claimed in time
    └── BrokerError
        ├── BrokerUnavailable broker-unavailable   not reachable now; carries ``retry_after``
        ├── BrokerRefused     broker-refused       credentials, TLS, permissions
        ├── BrokerUnsuitable  broker-unsuitable    too old, no JetStream, differing settings
        ├── BrokerFailed      broker-failed        it answered with an error of its own
        ├── UnknownScheme     unknown-scheme       a URL that no adapter knows
        └── MissingExtra      missing-extra        an optional package is not installed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class TailraceError(Exception):
    """The root. ``code`` is stable, ``hint`` says what to do."""

    code: str = "internal"
    hint: str = ""
    setting: ClassVar[str] = ""

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if hint is not None:
            self.hint = hint


class InvalidStreamId(TailraceError):
    code = "invalid-id"
    hint = "Use 1 to 256 characters of A-Z a-z 0-9 _ . : -"


class StreamNotFound(TailraceError):
    code = "missing"
    hint = "The stream was never started, was deleted, or has expired; start it again."


class StreamSuperseded(TailraceError):
    code = "missing"
    hint = "Another producer owns this stream now; stop producing."


class StreamFinalized(TailraceError):
    code = "finalized"
    hint = "A finished stream takes no more chunks; use a new id."


class LeaseRequired(TailraceError):
    code = "lease-required"
    hint = "Acquire the stream with this store, or pass the lease of the acquisition."


class StreamEnded(TailraceError):
    """A stream's ending other than ``done``, met by a reader after the last entry."""

    code = "error"


class StreamErrored(StreamEnded):
    code = "error"
    hint = "The producer reported this error; what was read before it is complete."


class StreamCancelled(StreamEnded):
    code = "cancelled"
    hint = "The run was cancelled; what was read before it is complete."


class StreamExpired(StreamEnded):
    code = "expired"
    hint = "Its time to live passed; start it again."


class ProducerLost(StreamEnded):
    code = "producer-lost"
    hint = "The process that produced this stream died; what was read is what it had stored. Start a new run."


class StreamTrimmed(StreamEnded):
    code = "trimmed"
    hint = "The broker lost part of this stream; what was read is right, the rest cannot be had. Start a new run."


class StreamDeleted(StreamEnded):
    code = "deleted"
    hint = "The stream was deleted while it was read."


class LimitExceeded(TailraceError):
    """A limit said no. ``setting`` names the setting that moves it."""

    code = "limit-exceeded"


class ChunkTooLarge(LimitExceeded):
    code = "chunk-too-large"
    setting = "TAILRACE_MAX_CHUNK_BYTES"
    hint = "Split the chunk, or raise TAILRACE_MAX_CHUNK_BYTES."


class TooManyEntries(LimitExceeded):
    code = "too-many-entries"
    setting = "TAILRACE_MAX_ENTRIES"
    hint = "Send larger chunks, or raise TAILRACE_MAX_ENTRIES."


class StreamTooLarge(LimitExceeded):
    code = "stream-too-large"
    setting = "TAILRACE_MAX_STREAM_BYTES"
    hint = "End the stream and go on under another id, or raise TAILRACE_MAX_STREAM_BYTES."


class StreamTooOld(LimitExceeded):
    code = "stream-too-old"
    setting = "TAILRACE_MAX_STREAM_AGE"
    hint = "A stream lives no longer than TAILRACE_MAX_STREAM_AGE; go on under another id."


class TooManyStreams(LimitExceeded):
    code = "too-many-streams"
    setting = "TAILRACE_MAX_STREAMS"
    hint = "Wait for streams to end or expire, delete some, or raise TAILRACE_MAX_STREAMS."


class StorageFull(LimitExceeded):
    code = "storage-full"
    setting = "TAILRACE_MAX_TOTAL_BYTES"
    hint = "Give the broker more room, raise TAILRACE_MAX_TOTAL_BYTES, or wait until the broker's retention frees some."


class TooManyReaders(LimitExceeded):
    code = "too-many-readers"
    setting = "TAILRACE_MAX_READERS"
    hint = "Try again later or on another gateway, or raise TAILRACE_MAX_READERS."


class TooMuchPending(LimitExceeded):
    code = "too-much-pending"
    setting = "TAILRACE_MAX_PENDING_BYTES"
    hint = "Await controller.drain() while writing, or raise TAILRACE_MAX_PENDING_BYTES."


class TtlTooLong(LimitExceeded):
    code = "ttl-too-long"
    setting = "TAILRACE_MAX_TTL"
    hint = "Ask for a shorter time to live, or raise TAILRACE_MAX_TTL (and with it what the broker retains)."


class SlowReader(LimitExceeded):
    """The reader fell too far behind and was cut off. ``cursor`` is where it resumes."""

    code = "slow-reader"
    setting = "TAILRACE_MAX_READER_LAG_BYTES"
    hint = "Reconnect with the cursor, or raise TAILRACE_MAX_READER_LAG_BYTES."

    def __init__(self, message: str, *, cursor: str = "") -> None:
        super().__init__(message)
        self.cursor = cursor


class CursorError(TailraceError):
    code = "invalid-cursor"


class InvalidCursor(CursorError):
    code = "invalid-cursor"
    hint = 'Pass a cursor exactly as it was received, for the stream that it came from; "" is the beginning.'


class CursorGone(CursorError):
    """The position belongs to bytes that are no longer the stream's. ``incarnation`` is the current one."""

    code = "cursor-gone"
    hint = "Drop what was read and read the stream from its beginning."

    def __init__(self, message: str, *, incarnation: str = "") -> None:
        super().__init__(message)
        self.incarnation = incarnation


class OffsetOutOfRange(CursorError):
    """The offset lies beyond the end of an ended stream of ``length`` bytes."""

    code = "offset-out-of-range"
    hint = "Read from an offset that is at most the stream's length."

    def __init__(self, message: str, *, length: int = 0) -> None:
        super().__init__(message)
        self.length = length


class RecordError(TailraceError):
    code = "corrupt-record"


class UnsupportedRecord(RecordError):
    code = "unsupported-record"
    hint = "A newer Tailrace wrote this; upgrade this process."


class CorruptRecord(RecordError):
    code = "corrupt-record"
    hint = "Something else writes to Tailrace's subjects or topics; give Tailrace its own."


class RunError(TailraceError):
    code = "run-error"


class UnknownHandler(RunError):
    code = "unknown-handler"

    def __init__(self, message: str, *, known: Sequence[str] = ()) -> None:
        super().__init__(message, hint="Known handlers: " + (", ".join(sorted(known)) or "none"))
        self.known = tuple(sorted(known))


class InvalidInput(RunError):
    """``errors`` holds one ``{"path", "message", "type"}`` a violation, as pydantic reports them."""

    code = "invalid-input"
    hint = "Mend the named fields of input and send it again."

    def __init__(self, message: str, *, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class RunTooLarge(RunError):
    code = "run-too-large"
    hint = "Send a smaller input, or raise the largest message that the broker takes (max_payload)."


class UnknownFormat(RunError):
    code = "unknown-format"

    def __init__(self, message: str, *, hint: str | None = None, known: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.known = tuple(known)


class RunConflict(RunError):
    code = "run-conflict"
    hint = "The id names another request; use a new id, or repeat the first request to join it."


class NoWorkers(RunError):
    code = "no-workers"
    hint = "Start a worker (`tailrace worker`) and send the request again."


class ClaimTimeout(RunError):
    code = "claim-timeout"
    hint = "The run stays queued; read it later at its Location."


class BrokerError(TailraceError):
    code = "broker-failed"


class BrokerUnavailable(BrokerError):
    """The broker does not answer now. ``retry_after`` is a number of seconds worth waiting."""

    code = "broker-unavailable"
    hint = "Check that the broker runs and can be reached; nothing that was acknowledged is lost."

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BrokerRefused(BrokerError):
    code = "broker-refused"
    hint = "Check user, password, token, credentials file and TLS settings."


class BrokerUnsuitable(BrokerError):
    code = "broker-unsuitable"


class BrokerFailed(BrokerError):
    code = "broker-failed"


class UnknownScheme(BrokerError):
    code = "unknown-scheme"


class MissingExtra(BrokerError):
    code = "missing-extra"
