"""`RunQueue` on Kafka: a compacted topic whose messages are the commands that are not done.

Theory. A queue needs no offsets to commit: a command is a message under its own id, and being done is the absence of
that message (a tombstone, which the broker's compaction turns into nothing). Every process reads the topic from its
beginning and follows it (`run_table`), so each one knows all commands that are not done, who has taken each, and, by
the heartbeats, whether that member lives. That is all it takes to keep the promise that an accepted run runs:

- accepted: the command is stored, and this process has seen that it is the one that counts.
- taken: a worker stores that it has it before it claims the stream. The claim elects who runs it, so two workers that
  take one command at once do no harm; what is stored here only keeps the others from trying.
- lost: a command whose takers are all lost is free again. Any worker gives it another look: it runs it if it was never
  claimed, and writes the producer-lost ending if it was.
- done: only when the stream has an ending. A worker that dies before it says so leaves the command to the next one,
  which finds the ending and says it.

Which worker takes a free command is a matter of courtesy, not of correctness (`tailrace.worker.kafka_source`).

Rules. A submit whose answer is lost looks at the table and sends the same message again: it is one command. Compaction
never changes which command counts, since each has a key of its own; a command that came second to another's is removed
by its submitter, and if that dies, with the other one: else it would count for whoever reads when that is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace

from aiokafka.protocol.offset import OffsetResetStrategy

from tailrace.command_wire import REASON, encode_command
from tailrace.contracts import Command
from tailrace.errors import BrokerUnavailable, RunTooLarge
from tailrace.kafka.connection import Connection, Place
from tailrace.kafka.feed import Feed, Lost
from tailrace.kafka.feeds import Feeds
from tailrace.kafka.reading import Batch
from tailrace.kafka.refusals import Unanswered
from tailrace.kafka.run_table import Message, Queued, RunTable
from tailrace.kafka.sender import Ack, Headers, Sender, parts, size_of
from tailrace.kafka.topics import Names
from tailrace.kafka.wire import texts

_ATTEMPTS = 4
_ROOM = 16 * 1024  # of a message's size, so that a dead letter, which also tells why, always fits

Take = Callable[[Batch], None]

_log = logging.getLogger(__name__)


class KafkaRunQueue:
    """Made by `open_kafka`; see `tailrace.contracts.RunQueue` for what each call promises."""

    kind = "kafka"

    def __init__(self, connection: Connection, names: Names, feeds: Feeds, sender: Sender) -> None:
        self.connection = connection
        self.table = RunTable()
        self._names = names
        self._feeds = feeds
        self._sender = sender
        self._followed: list[Feed] = []

    async def start(self) -> None:
        """Read the topic from its beginning to its end, and follow it. Raises `BrokerUnavailable`."""
        first = await self.connection.offsets(self._names.all_runs, OffsetResetStrategy.EARLIEST)
        for place in self._names.all_runs:
            take, lost = self._take_of(place), self._restart_of(place)
            self._followed.append(await self._feeds.follow(place, take, lost, first[place]))
        ends = await self.connection.ends(self._names.all_runs)
        for feed, end in zip(self._followed, ends, strict=True):
            await self._passed(feed, end)

    def _take_of(self, place: Place) -> Take:
        def take(batch: Batch) -> None:
            for raw in batch.records:
                if raw.key is None:
                    _log.warning("skipped a message without a key in %s", place)
                    continue
                self.table.take(place.partition, Message(raw.key, raw.value, raw.timestamp, texts(raw)))

        return take

    def _restart_of(self, place: Place) -> Lost:
        def restart(first: int, end: int) -> int:
            self.table.clear(place.partition)
            return first

        return restart

    async def _passed(self, feed: Feed, offset: int) -> None:
        """Return when everything before ``offset`` is in the table. However much that is: who gets on is not late."""
        while True:
            before = feed.position
            try:
                async with asyncio.timeout(self.connection.options.request_timeout):
                    return await feed.passed(offset)
            except TimeoutError:
                if feed.position == before:
                    raise BrokerUnavailable(f"The runs at {self.connection} cannot be read") from None

    async def _refresh(self, place: Place) -> None:
        """Return when the table knows all that was stored there when this call began. Raises `BrokerUnavailable`."""
        await self._passed(self._followed[place.partition], await self.connection.end(place))

    # --- for everybody

    async def submit(self, command: Command) -> Command:
        command = replace(command, id=command.id or secrets.token_hex(12))
        place = self._names.runs(command.stream_id)
        key, (found, payload) = command.id.encode(), encode_command(command)
        headers = parts(list(found.items()))
        if (size := size_of(key, payload, headers)) > (most := self.connection.options.max_message_bytes - _ROOM):
            raise RunTooLarge(
                f"The run of {command.stream_id} takes {size} bytes; the broker's messages take {most}",
                hint="Send a smaller input, or raise TAILRACE_KAFKA_MAX_MESSAGE_BYTES (and the topics' setting).",
            )
        counts: asyncio.Future[Queued] = asyncio.get_running_loop().create_future()
        self.table.expect(command.id, lambda queued: None if counts.done() else counts.set_result(queued))
        try:
            standing = await self._submit(place, key, payload, headers, counts)
        finally:
            self.table.forget(command.id)
        if standing.id != command.id and standing.command is not None:
            self._sender.send(place, key, None, [])  # not awaited: nobody else takes it for one that counts
            return standing.command
        return command

    async def _submit(
        self, place: Place, key: bytes, payload: bytes, headers: Headers, counts: asyncio.Future[Queued]
    ) -> Queued:
        for _ in range(_ATTEMPTS):
            try:
                ack = await self._sender.send(place, key, payload, headers)
            except Unanswered:
                await self._refresh(place)
            else:
                await self._passed(self._followed[place.partition], ack.offset + 1)
            if counts.done():
                return counts.result()
        raise BrokerUnavailable(f"{self.connection} did not confirm the run {key.decode()}")

    async def find(self, stream_id: str) -> Command | None:
        await self._refresh(self._names.runs(stream_id))
        queued = self.table.of_stream(stream_id)
        return queued.command if queued else None

    async def cancel(self, member_id: str, stream_id: str) -> None:
        await self._confirmed(self._sender.send(self._names.cancels, member_id.encode(), stream_id.encode(), []))

    # --- for workers

    @property
    def cancels(self) -> Place:
        """Where members hear what to cancel: the member's id is the key, the stream's the value."""
        return self._names.cancels

    def take(self, queued: Queued, member_id: str) -> asyncio.Future[Ack]:
        """Store that the member has it. The future may raise `BrokerUnavailable` or `Unanswered`."""
        return self._sender.send(self._place(queued), _taker(queued, member_id), b"taken", [])

    async def let_go(self, queued: Queued, member_id: str) -> None:
        """Store that the member has it no more. Raises `BrokerUnavailable`."""
        await self._confirmed(self._sender.send(self._place(queued), _taker(queued, member_id), None, []))

    async def done(self, queued: Queued, member_id: str) -> None:
        """Remove the command, whatever names it, and what came behind it. Raises `BrokerUnavailable`."""
        place = self._place(queued)
        behind = [command_id.encode() for command_id in queued.behind]  # first: without it one of them might count
        keys = [*behind, queued.id.encode(), *(_taker(queued, taker) for taker in {*queued.takers, member_id})]
        await self._confirmed(*[self._sender.send(place, key, None, []) for key in keys])

    async def bury(self, queued: Queued, reason: str) -> None:
        """Store the command as it came among the dead letters, with ``reason`` as JSON text in the header
        `Tailrace-Reason`. Raises `BrokerUnavailable`."""
        headers = [*queued.headers.items(), (REASON, json.dumps(reason[:1000]))]
        await self._confirmed(self._sender.send(self._names.dead, queued.id.encode(), queued.value, parts(headers)))

    def _place(self, queued: Queued) -> Place:
        return self._names.all_runs[queued.partition]

    async def _confirmed(self, *sent: asyncio.Future[Ack]) -> None:
        try:
            async with asyncio.timeout(self.connection.options.request_timeout):
                await asyncio.gather(*sent)
        except (Unanswered, TimeoutError) as error:
            raise BrokerUnavailable(f"{self.connection} did not confirm what became of a run") from error


def _taker(queued: Queued, member_id: str) -> bytes:
    return f"{queued.id}/{member_id}".encode()
