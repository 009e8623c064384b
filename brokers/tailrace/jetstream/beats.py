"""`Beats` on JetStream: one subject a member, the last heartbeat kept, all of them republished to whoever follows."""

from __future__ import annotations

import json
from collections.abc import Callable

from tailrace.errors import BrokerUnavailable
from tailrace.jetstream import reading, refusals
from tailrace.jetstream.connection import Connection, Unanswered
from tailrace.jetstream.names import Names
from tailrace.jetstream.wire import TIME, parse_headers, time_ms


class JetStreamBeats:
    """Made by `open_jetstream`; see `tailrace.log.Beats` for what each call promises."""

    def __init__(self, connection: Connection, names: Names) -> None:
        self._connection = connection
        self._names = names

    async def send(self, member_id: str, payload: bytes) -> None:
        try:
            _, answer = await self._connection.request(self._names.member(member_id).encode(), payload)
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None
        if (refused := json.loads(answer).get("error")) is not None:
            raise refusals.of(refused, f"heartbeat at {self._connection}")

    async def follow(self, deliver: Callable[[int, bytes], None], uncertain: Callable[[], None]) -> FollowingBeats:
        clock = self._connection.clock

        def take(subject: bytes, block: bytes | None, payload: bytes) -> None:
            headers = parse_headers(block)
            if TIME in headers:
                deliver(clock.see(time_ms(headers[TIME])), payload)

        number = await self._connection.follow(f"{self._names.prefix}.ml.*", take, uncertain)
        return FollowingBeats(self._connection, number)

    async def recent(self) -> list[tuple[int, bytes]]:
        # the stream holds one message a member: all of it is the last of each, and reading on costs the server least
        everybody = f"{self._names.prefix}.m.*"
        beats = await reading.subject_after(self._connection, self._names.members, everybody, 0)
        return [(self._connection.clock.see(time_ms(headers[TIME])), payload) for headers, payload in beats]


class FollowingBeats:
    """What `JetStreamBeats.follow` made."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number

    async def close(self) -> None:
        self._connection.unfollow(self._number)
