"""One followed stream: where its entries come from now, and what they are.

Theory. A live stream's entries come from its data key. A stream that is not there has no key to wait at: the key of all
claims tells of the next life that a process of ours begins, and the sweep of one that npm begins.

Rules.

- A record of ours is delivered as it comes. An entry of npm's, or a record of another life, only raises a doubt: its
  meaning rests on what came before, which reading knows.
- The sweep compares npm's ``meta`` with what was there: another generation, none, or an end that was not heard of
  raises a doubt too. So does a data key that had entries and is gone: in the layout of 0.3.15 nothing else tells of a
  next life without entries.
"""

from __future__ import annotations

from collections.abc import Callable

from tailrace.decide import ends_a_life
from tailrace.errors import RecordError
from tailrace.model import Incarnation
from tailrace.records import Stored
from tailrace.redis.listening import Channel
from tailrace.redis.wire import Assembler, Entry, Meta, View, meta_of, own, time_of

Deliver = Callable[[Stored], None]


class Watch:
    """A stream and its followers. ``moved`` is called when the place to listen at must be looked for again."""

    def __init__(self, stream_id: str, moved: Callable[[Watch], None]) -> None:
        self.stream_id = stream_id
        self.followers: dict[object, tuple[Deliver, Callable[[], None]]] = {}
        self.channel: Channel | None = None
        self.incarnation: Incarnation | None = None
        self.meta = Meta()
        self.has_entries = False
        self.position = 0
        self._text: bytes | None = None  # of the meta
        self._moved = moved
        self._assembler = Assembler(stream_id)

    def settle(self, view: View, has_entries: bool) -> None:
        """The stream as a script saw it: entries come from here on."""
        self.incarnation, self.position, self.has_entries = view.incarnation, view.position, has_entries
        self._text = view.meta or None
        self.meta = meta_of(self._text)
        self._assembler = Assembler(self.stream_id)

    def take(self, entries: list[Entry]) -> None:
        self.has_entries = True
        for position, fields in entries:
            if b"fin" in fields:
                self.meta = self.meta._replace(ended=True)
            if not own(fields):
                self.position = position
                self.doubt()
                continue
            try:
                record = self._assembler.take(fields)
            except RecordError:  # reading tells whoever must know
                self.position = position
                self.doubt()
                continue
            if record is None:
                continue
            previous, self.position = self.position, position
            if record.incarnation != self.incarnation:
                self._moved(self)
                return
            stored = Stored(position, previous, time_of(position), record)
            for deliver, _ in tuple(self.followers.values()):
                deliver(stored)
            if ends_a_life(record):
                self._moved(self)
                return

    def swept(self, meta: bytes | None) -> None:
        """npm's meta as it is now."""
        if meta == self._text:
            return
        self._text = meta
        before, self.meta = self.meta, meta_of(meta)
        if self.meta.token != before.token or (self.meta.ended and not before.ended):
            self._moved(self)

    def emptied(self) -> None:
        """The key that had entries is gone."""
        self.has_entries = False
        self._moved(self)

    @property
    def may_be_emptied(self) -> bool:
        """Whether its life may end without a trace in ``meta``."""
        return self.has_entries and self.incarnation is not None and self.meta.token == ""

    def doubt(self) -> None:
        for _, uncertain in tuple(self.followers.values()):
            uncertain()
