"""The bytes that the server speaks, as values: header blocks, timestamps and stored messages. Pure."""

from __future__ import annotations

import base64
from calendar import timegm
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from tailrace.errors import CorruptRecord
from tailrace.records import Stored, decode

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
SEQUENCE, TIME, PREVIOUS = "Nats-Sequence", "Nats-Time-Stamp", "Nats-Last-Sequence"
PENDING, UP_TO, SUBJECT = "Nats-Num-Pending", "Nats-UpTo-Sequence", "Nats-Subject"
_VERSION = "NATS/1.0"

Reply = tuple[bytes | None, bytes]  # header block (None: there is none) and payload


def header_block(headers: Mapping[str, str], expected: int | None = None) -> bytes:
    """Encode ``headers``, and the condition on the subject's last sequence. Values hold no line breaks: the callers'
    are numbers, identifiers and JSON."""
    lines = [_VERSION] if expected is None else [_VERSION, f"{EXPECTED}: {expected}"]
    lines.extend([f"{name}: {value}" for name, value in headers.items()])
    lines.append("\r\n")
    return "\r\n".join(lines).encode()


def parse_headers(block: bytes | None) -> dict[str, str]:
    """Decode a header block; what is not a header is left out."""
    if block is None:
        return {}
    lines = block.decode("utf-8", "replace").split("\r\n")
    try:
        return dict([line.split(": ", 1) for line in lines[1:-2]])  # type: ignore[arg-type, misc, unused-ignore]  # pairs, or it raises
    except ValueError:  # not as the server and this adapter write them
        pairs = [line.partition(":") for line in lines[1:]]
        return {name: value.strip() for name, colon, value in pairs if colon}


def status(block: bytes | None) -> int:
    """The status that a header block begins with (404, 503 …), 0 where there is none."""
    if block is None or block[8:9] != b" ":
        return 0
    digits = block[9:12]
    return int(digits) if digits.isdigit() else 0


def status_text(block: bytes) -> str:
    """The words behind the status."""
    return block[13:].partition(b"\r\n")[0].decode("utf-8", "replace").strip()


def time_ms(text: str) -> int:
    """RFC 3339 in UTC with up to nine decimals, trailing zeros left out, as ms since the Unix epoch."""
    return _second(text[:19]) + int(text[20:23].rstrip("Z").ljust(3, "0"))


@lru_cache(maxsize=512)
def _second(text: str) -> int:
    return timegm(datetime.fromisoformat(text).timetuple()) * 1000


def stored(headers: Mapping[str, str], payload: bytes, previous: int, stream_id: str | None = None) -> Stored:
    """A message with the server's headers, as a record in its place. Raises `RecordError`, also where the record is
    not ``stream_id``'s (two ids of one hash, or a stranger's message)."""
    record = decode(headers, payload)
    if stream_id is not None and record.stream_id != stream_id:
        raise CorruptRecord(f"A record of {record.stream_id} under the subject of {stream_id}")
    return Stored(int(headers[SEQUENCE]), previous, time_ms(headers[TIME]), record)


def message(answer: Mapping[str, Any]) -> tuple[dict[str, str], bytes]:
    """Headers (the server's sequence and time among them, as a direct get adds them) and payload of what the message
    API answers."""
    found = answer["message"]
    headers = parse_headers(base64.b64decode(found["hdrs"])) if "hdrs" in found else {}
    headers[SEQUENCE], headers[TIME], headers[SUBJECT] = str(found["seq"]), found["time"], found["subject"]
    return headers, base64.b64decode(found.get("data") or "")
