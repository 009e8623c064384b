"""`Log` on JetStream: records in sharded streams, the live end as republished messages.

Theory. A stream's records are the messages of one subject, their positions the server's sequences. An append is one
publish on the condition that the subject's last sequence is the expected one: the server judges, and nobody else. What
it stores it publishes again under the live subject, with the position of the subject's message before it.

Rules. A decision rests on the leader: `last`, and the end of every `read`, ask it (a direct get may come from a replica
that is behind; with one replica there is none). An append without an answer is unknown, never repeated here. A message
that is not a record of the stream is skipped by readers and followers alike, counted in `skipped`, and named once in
the log; a record of a newer version is never skipped: it makes followers read, and reading raises.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from tailrace.decide import ends_a_life
from tailrace.errors import (
    BrokerFailed,
    BrokerUnavailable,
    ChunkTooLarge,
    CorruptRecord,
    RecordError,
    UnsupportedRecord,
)
from tailrace.jetstream import reading, refusals, segments
from tailrace.jetstream.connection import Connection, Unanswered
from tailrace.jetstream.names import Names, Place
from tailrace.jetstream.wire import PREVIOUS, SEQUENCE, header_block, message, parse_headers, stored
from tailrace.log import AppendRefused, AppendUnknown
from tailrace.model import Incarnation
from tailrace.records import Record, Stored, encode

HEADER_ROOM = 32 * 1024  # of a message's size, kept for the headers: most of it for the sizes of many chunks
MAX_HEADER = 65535  # the server's own limit

_log = logging.getLogger(__name__)


class JetStreamLog:
    """Made by `open_jetstream`; see `tailrace.log.Log` for what each call promises."""

    def __init__(self, connection: Connection, names: Names) -> None:
        self.clock = connection.clock
        self._connection = connection
        self._names = names
        self._replicated = connection.options.replicas > 1
        self._followings: set[Following] = set()
        self.skipped = 0

    @property
    def max_record_bytes(self) -> int:
        return self._connection.max_payload - HEADER_ROOM

    def now_ms(self) -> int:
        return self.clock.now_ms

    def key(self, stream_id: str) -> str:
        return self._names.place(stream_id).key

    async def append(self, record: Record, expected: int) -> int:
        headers, payload = encode(record)
        block = header_block(headers, expected)
        if len(block) + len(payload) > self._connection.max_payload or len(block) > MAX_HEADER:
            raise self._too_large(record, len(block), len(payload))
        subject = self._names.place(record.stream_id).subject_bytes
        try:
            _, answer = await self._connection.request(subject, payload, block)
        except Unanswered as error:
            raise AppendUnknown(str(error)) from None
        ack = json.loads(answer)
        if (refused := ack.get("error")) is None:
            position: int = ack["seq"]
            return position
        if refused.get("err_code") in refusals.WRONG_LAST:
            raise AppendRefused(str(refused.get("description")))
        raise refusals.of(refused, f"append to {record.stream_id} at {self._connection}")

    def _too_large(self, record: Record, head: int, size: int) -> ChunkTooLarge | BrokerFailed:
        limit, where = self._connection.max_payload, self._connection
        if size > limit - HEADER_ROOM:
            return ChunkTooLarge(
                f"A record of {size} bytes for {record.stream_id}: {where} takes {limit}, headers included",
                hint="Split the chunk, or raise max_payload in the nats-server's configuration.",
            )
        return BrokerFailed(
            f"A record of {record.stream_id} has {head} bytes of headers, and {where} takes {MAX_HEADER}",
            hint="Give the stream fewer response headers, or store fewer chunks in one record.",
        )

    async def last(self, stream_id: str) -> Stored | None:
        return await self._from_leader(stream_id, {"last_by_subj": self._names.place(stream_id).subject})

    async def _from_leader(self, stream_id: str, body: dict[str, str | int]) -> Stored | None:
        try:
            answer = await self._connection.api(f"STREAM.MSG.GET.{self._names.place(stream_id).stream}", body)
        except refusals.Refusal as error:
            if error.number == refusals.NO_MESSAGE:
                return None
            raise
        found = stored(*message(answer), -1, stream_id)
        self.clock.see(found.time_ms)
        return found

    async def read(self, stream_id: str, after: int = 0) -> list[Stored]:
        place = self._names.place(stream_id)
        if not self._replicated:
            return await self._read_direct(stream_id, place, after)
        found, last = await asyncio.gather(self._read_direct(stream_id, place, after), self.last(stream_id))
        if last is None:
            return []
        position = found[-1].position if found else after
        while position < last.position:  # the replica was behind: the rest one by one from the leader
            body: dict[str, str | int] = {"next_by_subj": place.subject, "seq": position + 1}
            following = await self._from_leader(stream_id, body)
            if following is None:
                break
            found.append(following._replace(previous=position))
            position = following.position
        return found

    async def _read_direct(self, stream_id: str, place: Place, after: int) -> list[Stored]:
        found: list[Stored] = []
        for headers, payload in await reading.subject_after(self._connection, place.stream, place.subject, after):
            try:
                found.append(stored(headers, payload, found[-1].position if found else after, stream_id))
            except CorruptRecord as error:
                self.skip(place.subject, error)
        if found:
            self.clock.see(found[-1].time_ms)
        return found

    async def follow(
        self, stream_id: str, deliver: Callable[[Stored], None], uncertain: Callable[[], None]
    ) -> Following:
        following = Following(self, stream_id, deliver, uncertain)
        await following.start(self._connection, self._names.place(stream_id).live)
        self._followings.add(following)
        return following

    async def lasts(self) -> AsyncIterator[Stored]:
        for shard in range(self._names.shards):
            stream = self._names.shard(shard)
            async for headers, payload in reading.last_of_each(self._connection, stream, self._names.records(shard)):
                try:
                    found = stored(headers, payload, -1)
                except RecordError as error:  # of one stream: the others are asked for too
                    self.skip(stream, error)
                    continue
                self.clock.see(found.time_ms)
                yield found

    async def count(self, below: int | None = None) -> int:
        """The streams that are there. It reads every stream's last record, unless there are fewer than ``below``
        together with those that are gone but still kept: then it gives that number."""
        answer = await self._connection.api("STREAM.LIST", {"subject": f"{self._names.prefix}.s.>"})
        if missing := answer.get("missing"):
            raise BrokerUnavailable(f"Shards without a leader at {self._connection}: {', '.join(missing)}")
        kept = sum(int(shard["state"].get("num_subjects", 0)) for shard in answer.get("streams") or ())
        if kept == 0 or (below is not None and kept < below):
            return kept
        return sum([1 async for stored in self.lasts() if not ends_a_life(stored.record)])

    async def write_segments(self, stream_id: str, incarnation: Incarnation, segments_: Sequence[bytes]) -> None:
        await segments.write(self._connection, self._names, stream_id, incarnation, segments_)

    async def read_segments(self, stream_id: str, incarnation: Incarnation) -> list[bytes] | None:
        return await segments.read(self._connection, self._names, stream_id, incarnation)

    async def drop_segments(self, stream_id: str, incarnation: Incarnation) -> None:
        await segments.drop(self._connection, self._names, stream_id, incarnation)

    def skip(self, where: str, error: RecordError) -> None:
        """Count a message that is not a record, and tell the first."""
        self.skipped += 1
        if self.skipped == 1:
            _log.warning("Skipped a message on %s: %s. %s", where, error, error.hint)

    async def close(self) -> None:
        for following in tuple(self._followings):
            await following.close()

    def forget(self, following: Following) -> None:
        self._followings.discard(following)


class Following:
    """One stream's live subject."""

    def __init__(
        self, log: JetStreamLog, stream_id: str, deliver: Callable[[Stored], None], uncertain: Callable[[], None]
    ) -> None:
        self._log = log
        self._stream_id = stream_id
        self._deliver = deliver
        self._uncertain = uncertain
        self._connection: Connection | None = None
        self._number = 0
        self._skipped: tuple[int, int] | None = None  # position and previous of what was left out last

    async def start(self, connection: Connection, live: str) -> None:
        self._number = await connection.follow(live, self._take, self._uncertain)
        self._connection = connection

    def _take(self, subject: bytes, block: bytes | None, payload: bytes) -> None:
        headers = parse_headers(block)
        try:
            previous = int(headers.get(PREVIOUS, -1))
            if self._skipped is not None and self._skipped[0] == previous:
                previous = self._skipped[1]
            found = stored(headers, payload, previous, self._stream_id)
        except UnsupportedRecord:
            self._uncertain()  # reading raises it to whoever must know
        except (RecordError, ValueError, KeyError) as error:
            if SEQUENCE in headers:
                self._skipped = (int(headers[SEQUENCE]), previous)
            self._log.skip(subject.decode(), error if isinstance(error, RecordError) else CorruptRecord(str(error)))
        else:
            self._log.clock.see(found.time_ms)
            self._deliver(found)

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.unfollow(self._number)
            self._connection = None
            self._log.forget(self)
