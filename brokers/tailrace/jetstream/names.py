"""Names in the broker: streams, subjects, tokens. Pure.

::

    stream          subjects                       republished to
    TAILRACE_S_05   tailrace.s.05.<hash>           tailrace.l.05.<hash>      records
    TAILRACE_G      tailrace.g.<hash>.<inc>.<n>                              sealed segments
    TAILRACE_M      tailrace.m.<member>            tailrace.ml.<member>      heartbeats
    TAILRACE_R      tailrace.r.<handler>.<hash>                              commands
    TAILRACE_DEAD   tailrace.dead.<handler>.<hash>                           dead letters
                    tailrace.c.<member>                                      cancels, not stored
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

from tailrace.model import Incarnation

_TOKEN = re.compile(r"[a-z0-9_-]{1,64}")  # consumers are directories, and some file systems fold case


def digest(text: str) -> str:
    """128 bits of hash as 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def token(text: str) -> str:
    """Free text as one subject token: itself where it is safe, else a hash (which no safe text begins like)."""
    return text if _TOKEN.fullmatch(text) and not text.startswith("h--") else "h--" + digest(text)


class Place(NamedTuple):
    """Where a stream's records are."""

    key: str
    stream: str
    subject: str
    live: str
    subject_bytes: bytes


class Names:
    """The names of one deployment."""

    def __init__(self, prefix: str, shards: int) -> None:
        self.prefix = prefix
        self.shards = shards
        self.segments = self._stream("G")
        self.members = self._stream("M")
        self.commands = self._stream("R")
        self.dead = self._stream("DEAD")
        self.place = lru_cache(maxsize=16384)(self._place)

    def _stream(self, suffix: str) -> str:
        return f"{self.prefix.upper()}_{suffix}"

    def shard(self, number: int) -> str:
        """The stream of a shard."""
        return self._stream(f"S_{number:02}")

    def _place(self, stream_id: str) -> Place:
        key = digest(stream_id)
        shard = int(key[:8], 16) % self.shards
        subject = f"{self.prefix}.s.{shard:02}.{key}"
        return Place(key, self.shard(shard), subject, f"{self.prefix}.l.{shard:02}.{key}", subject.encode())

    def records(self, shard: int) -> str:
        """The subjects of a shard."""
        return f"{self.prefix}.s.{shard:02}.*"

    def segment(self, stream_id: str, incarnation: Incarnation, number: int) -> str:
        return f"{self.prefix}.g.{self.place(stream_id).key}.{incarnation}.{number}"

    def member(self, member_id: str) -> str:
        return f"{self.prefix}.m.{token(member_id)}"

    def command(self, handler: str, stream_id: str) -> str:
        return f"{self.prefix}.r.{token(handler)}.{digest(stream_id)}"

    def command_of_any(self, stream_id: str) -> str:
        return f"{self.prefix}.r.*.{digest(stream_id)}"

    def commands_of(self, handler: str) -> str:
        """What a handler's consumer filters by."""
        return f"{self.prefix}.r.{token(handler)}.*"

    def consumer(self, handler: str) -> str:
        """The durable consumer of a handler."""
        return f"{self.prefix}-{token(handler)}"

    def dead_letter(self, handler: str, stream_id: str) -> str:
        return f"{self.prefix}.dead.{token(handler)}.{digest(stream_id)}"

    def cancels(self, member_id: str) -> str:
        """Where a member hears which runs to stop."""
        return f"{self.prefix}.c.{token(member_id)}"
