"""Commands and their wire form: the payload is the request's input as it came, the rest is in headers. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tailrace.contracts import Command
from tailrace.errors import CorruptRecord, UnsupportedRecord

HEADER, ID, META, REASON = "Tailrace-Command", "Tailrace-Id", "Tailrace-Meta", "Tailrace-Reason"
VERSION = 1


def encode_command(command: Command) -> tuple[dict[str, str], bytes]:
    """Headers (printable ASCII) and payload of ``command``."""
    meta = {
        "handler": command.handler,
        "format": command.format,
        "digest": command.digest,
        "ttl": command.ttl,
        "policy": command.policy,
        "id": command.id,
    }
    headers = {HEADER: str(VERSION), ID: command.stream_id, META: json.dumps(meta, separators=(",", ":"))}
    return headers, command.input


def decode_command(headers: Mapping[str, str] | None, data: bytes) -> Command:
    """Read what `encode_command` wrote. Raises `UnsupportedRecord` for a newer version, else `CorruptRecord`."""
    version = (headers or {}).get(HEADER, "")
    if version.isdecimal() and len(version) < 20 and int(version) > VERSION:
        raise UnsupportedRecord(f"A command of format version {version}; this process reads up to {VERSION}")
    try:
        if headers is None or int(version) != VERSION:
            raise ValueError("no version")
        meta = json.loads(headers[META])
        ttl = meta["ttl"]
        return Command(
            stream_id=headers[ID],
            handler=str(meta["handler"]),
            input=data,
            format=str(meta["format"]),
            digest=str(meta["digest"]),
            ttl=None if ttl is None else float(ttl),
            policy=str(meta["policy"]),
            id=str(meta["id"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptRecord(f"A command that cannot be read ({type(error).__name__})") from error
