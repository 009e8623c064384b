"""Commands and their wire form: JSON facts beside the request's input, which stays as it came. Pure."""

from __future__ import annotations

import json

from tailrace.contracts import Command
from tailrace.errors import CorruptRecord, UnsupportedRecord

VERSION = 1


def encode_command(command: Command) -> tuple[str, bytes]:
    """The facts and the input."""
    facts = {
        "v": VERSION,
        "handler": command.handler,
        "format": command.format,
        "digest": command.digest,
        "ttl": command.ttl,
        "policy": command.policy,
        "id": command.id,
    }
    return json.dumps(facts, separators=(",", ":")), command.input


def decode_command(stream_id: str, facts: bytes, data: bytes) -> Command:
    """Read what `encode_command` wrote. Raises `UnsupportedRecord` for a newer version, else `CorruptRecord`."""
    try:
        value = json.loads(facts)
        if int(value["v"]) > VERSION:
            raise UnsupportedRecord(f"A command of format version {value['v']}; this process reads up to {VERSION}")
        ttl = value["ttl"]
        return Command(
            stream_id=stream_id,
            handler=str(value["handler"]),
            input=data,
            format=str(value["format"]),
            digest=str(value["digest"]),
            ttl=None if ttl is None else float(ttl),
            policy=str(value["policy"]),
            id=str(value["id"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRecord(f"A command that cannot be read ({type(error).__name__})") from error
