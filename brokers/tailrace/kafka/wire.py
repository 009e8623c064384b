"""Records as Kafka's messages, and back. Pure.

A message has the stream's id as its key, the record's headers and payload (`tailrace.records`), and one header more::

    Tailrace-After   41      the position of the stream's last record that its writer knew (0: none)

A position is the offset plus one, so that it is greater than 0.
"""

from __future__ import annotations

import hashlib

from tailrace.errors import CorruptRecord
from tailrace.kafka.reading import Raw, Sent
from tailrace.kafka.sender import Headers
from tailrace.records import Record, decode, encode

AFTER = "Tailrace-After"


def digest(stream_id: str) -> str:
    """128 bits of hash as 32 hexadecimal digits."""
    return hashlib.blake2b(stream_id.encode(), digest_size=16).hexdigest()


def message(record: Record, expected: int) -> tuple[Headers, bytes]:
    """Headers and value of a record that is to count only directly behind position ``expected``."""
    headers, payload = encode(record)
    found = [(name, value.encode()) for name, value in headers.items()]
    found.append((AFTER, b"%d" % expected))
    return found, payload


def record_of(raw: Raw) -> tuple[Record, int]:
    """The record, and the position that it must follow. Raises `RecordError`."""
    if type(raw) is Sent and raw.meant is not None:
        return raw.meant
    headers = texts(raw)
    record = decode(headers, raw.value or b"")
    if raw.key != record.stream_id.encode():
        raise CorruptRecord(f"A record of {record.stream_id} under the key of another stream")
    return record, number(headers, AFTER)


def texts(raw: Raw) -> dict[str, str]:
    """The headers as text."""
    return {name: (value or b"").decode("utf-8", "replace") for name, value in raw.headers}


def number(headers: dict[str, str], name: str) -> int:
    """A header that is a number. Raises `CorruptRecord`."""
    text = headers.get(name, "")
    if not text.isdecimal() or len(text) > 19:
        raise CorruptRecord(f"A message whose header {name} is no number: {text[:40]!r}")
    return int(text)
