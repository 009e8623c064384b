"""The commands that are not done, as every process knows them from the topic of runs. Pure.

A command's messages are in one partition, by stream id, so all processes see them in one order::

    key ID          a command (`tailrace.command_wire`); none once it is done
    key ID/MEMBER   the member has taken it; none once the member has let go of it

Rules. One command waits for a stream id and handler at a time: the first one stored that is not done. One that is
stored behind it does not count (`Queued.behind`), and its submitter is told which one does. A command that is stored
twice is one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tailrace.command_wire import ID, decode_command
from tailrace.contracts import Command
from tailrace.errors import InvalidStreamId, RecordError
from tailrace.model import validate_stream_id

_log = logging.getLogger(__name__)


class Message(NamedTuple):
    """What the topic holds, as far as it matters here. ``value`` is None where the key is done with."""

    key: bytes
    value: bytes | None
    time_ms: int
    headers: Mapping[str, str]


class Queued:
    """A command that is not done. ``command`` is None where it cannot be read, and ``unread`` says why; ``takers`` are
    the members that have it, dead ones too; ``behind`` are the ids of those that do not count because of it."""

    __slots__ = ("behind", "command", "headers", "id", "partition", "submitted_ms", "takers", "unread", "value")

    def __init__(self, command_id: str, partition: int, message: Message) -> None:
        self.id = command_id
        self.partition = partition
        self.submitted_ms = message.time_ms
        self.headers = message.headers
        self.value = message.value or b""
        self.takers: set[str] = set()
        self.behind: set[str] = set()
        self.command: Command | None = None
        self.unread: RecordError | None = None
        try:
            self.command = decode_command(message.headers, self.value)
        except RecordError as error:
            self.unread = error

    @property
    def stream_id(self) -> str | None:
        """The stream that it names, as far as even an unreadable one tells."""
        try:
            return validate_stream_id(self.headers.get(ID, ""))
        except InvalidStreamId:
            return None


class RunTable:
    """``on_change`` hears of every command that came, was taken, let go of, or done."""

    def __init__(self) -> None:
        self.on_change: Callable[[Queued], None] = lambda queued: None
        self._queued: dict[str, Queued] = {}
        self._by_stream: dict[str, dict[str, Queued]] = {}
        self._taken: dict[str, set[str]] = {}  # by member
        self._expected: dict[str, Callable[[Queued], None]] = {}

    def __iter__(self) -> Iterator[Queued]:
        return iter(tuple(self._queued.values()))

    def __contains__(self, command_id: str) -> bool:
        return command_id in self._queued

    def get(self, command_id: str) -> Queued | None:
        return self._queued.get(command_id)

    def of_stream(self, stream_id: str) -> Queued | None:
        """A command that waits for the stream, or runs in it."""
        return next(iter(self._by_stream.get(stream_id, {}).values()), None)

    def takers(self) -> Sequence[str]:
        """The members that have commands."""
        return tuple(self._taken)

    def taken_by(self, member_id: str) -> list[Queued]:
        return [self._queued[command_id] for command_id in self._taken.get(member_id, ())]

    def expect(self, command_id: str, told: Callable[[Queued], None]) -> None:
        """Tell which command counts, when the one of this id is seen; `forget` ends that."""
        self._expected[command_id] = told

    def forget(self, command_id: str) -> None:
        self._expected.pop(command_id, None)

    def take(self, partition: int, message: Message) -> None:
        """See the next message of a partition."""
        command_id, separator, member_id = message.key.decode("utf-8", "replace").partition("/")
        queued = self._queued.get(command_id)
        if not separator:
            if message.value is not None:
                self._submitted(command_id, partition, message)
            elif queued is not None:
                self._remove(queued)
                self.on_change(queued)
        elif queued is not None:
            if message.value is not None:
                queued.takers.add(member_id)
                self._taken.setdefault(member_id, set()).add(command_id)
            else:
                self._let_go(queued, member_id)
            self.on_change(queued)

    def _submitted(self, command_id: str, partition: int, message: Message) -> None:
        standing = self._queued.get(command_id)
        if standing is None:
            queued = Queued(command_id, partition, message)
            if queued.command is not None and queued.command.id != command_id:
                _log.warning("a command under another's key was skipped: %s", command_id)
                return
            standing = self._standing(queued)
            if standing is queued:
                self._add(queued)
            else:
                standing.behind.add(command_id)
        if (told := self._expected.get(command_id)) is not None:
            told(standing)

    def _standing(self, queued: Queued) -> Queued:
        if queued.command is None:
            return queued
        return self._by_stream.get(queued.command.stream_id, {}).get(queued.command.handler, queued)

    def _add(self, queued: Queued) -> None:
        self._queued[queued.id] = queued
        if queued.command is not None:
            self._by_stream.setdefault(queued.command.stream_id, {})[queued.command.handler] = queued
        self.on_change(queued)

    def _remove(self, queued: Queued) -> None:
        del self._queued[queued.id]
        for member_id in tuple(queued.takers):
            self._let_go(queued, member_id)
        if queued.command is not None:
            waiting = self._by_stream[queued.command.stream_id]
            del waiting[queued.command.handler]
            if not waiting:
                del self._by_stream[queued.command.stream_id]

    def _let_go(self, queued: Queued, member_id: str) -> None:
        queued.takers.discard(member_id)
        taken = self._taken.get(member_id, set())
        taken.discard(queued.id)
        if not taken:
            self._taken.pop(member_id, None)

    def clear(self, partition: int) -> None:
        """Forget a partition: it is about to be read from its beginning."""
        for queued in self:
            if queued.partition == partition:
                self._remove(queued)
                self.on_change(queued)
