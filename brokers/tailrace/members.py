"""This process as a member: it beats, hears the others, and judges who is lost.

Theory: see `tailrace.liveness`. One heartbeat serves all that a process does, however many streams it holds. A beat
also names, twice each, the streams that the process wrote and that have since gone quiet: the last live message of a
stream may be lost on its way, nothing follows to show it, and the beat does.

Rules: beats are numbered. Who misses one reads again what its sender writes. A beat that cannot be stored is skipped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from tailrace.contracts import MemberInfo
from tailrace.errors import BrokerUnavailable, TailraceError
from tailrace.liveness import Liveness
from tailrace.log import Beats, Following
from tailrace.tasks import end

logger = logging.getLogger("tailrace.members")

MOST_NAMED = 4096  # quiet streams in one beat, so that a beat stays a small message; the others wait for the next
HURRIED = 3  # quick beats after hearing begins

Quiet = list[tuple[str, int]]  # (key of a stream, position of its last record)


class Membership:
    """`tailrace.contracts.Members` over `Beats`. ``lease_ttl`` in seconds; a beat every fifth of it."""

    def __init__(self, beats: Beats, lease_ttl: float) -> None:
        self.lease_ttl = lease_ttl
        self.interval = lease_ttl / 5
        self._beats = beats
        self._id = f"{secrets.token_hex(8)}"
        self._liveness = Liveness(self._id, int(lease_ttl * 1000), int(self.interval * 3000))
        self._infos: dict[str, MemberInfo] = {}
        self._numbers: dict[str, int] = {}
        self._handlers: Mapping[str, Any] = {}
        self._free_slots: Callable[[], int] = lambda: 0
        self._number = 0
        self._hurried = HURRIED
        self._settled = asyncio.Event()
        self._following: Following | None = None
        self._task: asyncio.Task[None] | None = None
        self._unanswered: set[asyncio.Task[None]] = set()
        self._now = asyncio.Event()
        self.quiet: Callable[[], Quiet] = list
        self.on_tick: Callable[[], None] = lambda: None
        self.on_quiet: Callable[[Quiet], None] = lambda quiet: None
        self.on_missed: Callable[[str | None], None] = lambda member_id: None

    @property
    def id(self) -> str:
        return self._id

    async def start(self) -> None:
        """Follow the others' beats, take in those that are stored, begin to beat."""
        self._following = await self._beats.follow(self._heard, self._uncertain)
        for time_ms, payload in await self._beats.recent():
            self._heard(time_ms, payload)
        self._task = asyncio.create_task(self._run(), name="tailrace-heartbeat")

    async def _run(self) -> None:
        while True:
            beat = asyncio.create_task(self._beat())
            self._unanswered.add(beat)
            beat.add_done_callback(self._unanswered.discard)
            # an answer is not waited for beyond the next beat: the broker may have lost this one, and an answer that
            # does not come is known for that only after a time in which the others would believe that we are lost
            await asyncio.wait({beat}, timeout=self.interval)
            # the first beats come quickly, so that a process that begins to hear is soon able to judge who is there
            self._hurried = max(0, self._hurried - 1)
            pause = min(0.1, self.interval) if self._hurried else self.interval
            if not beat.done():
                pause = 0.0
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._now.wait()
            self._now.clear()

    async def _beat(self, goodbye: bool = False) -> None:
        try:
            await self._beats.send(self._id, self._body(goodbye))
        except TailraceError as error:
            level = logging.DEBUG if isinstance(error, BrokerUnavailable) else logging.WARNING
            logger.log(level, "heartbeat not stored: %s", error)
        except Exception:  # whatever it is: without beats, all that this process serves would be ended
            logger.exception("a heartbeat failed")

    def _body(self, goodbye: bool) -> bytes:
        self._number += 1
        body: dict[str, Any] = {
            "id": self._id,
            "n": self._number,
            "host": socket.gethostname(),
            "slots": self._free_slots(),
            "handlers": self._handlers,
            "quiet": self.quiet(),
        }
        if goodbye:
            body["bye"] = True
        return json.dumps(body, separators=(",", ":")).encode()

    def _heard(self, time_ms: int, payload: bytes) -> None:
        try:
            body = json.loads(payload)
            member_id, number = str(body["id"]), int(body["n"])
            info = MemberInfo(member_id, dict(body["handlers"]), int(body["slots"]), str(body["host"]))
            quiet = [(str(key), int(position)) for key, position in body["quiet"]]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            logger.warning("a heartbeat that cannot be read: %s", type(error).__name__)
            return
        self._liveness.heard(member_id, time_ms, goodbye=bool(body.get("bye")))
        self._infos[member_id] = info
        before = self._numbers.get(member_id)
        self._numbers[member_id] = number
        if before is not None and number > before + 1 and member_id != self._id:
            self.on_missed(member_id)
        if quiet:  # our own too: the live copy of what we wrote may be lost to our own readers as well
            self.on_quiet(quiet)
        if member_id == self._id:
            self._ticked()

    def _ticked(self) -> None:
        if self._liveness.settled:
            self._settled.set()
        for member_id in [known for known in self._infos if self._liveness.is_lost(known)]:
            del self._infos[member_id]
            self._numbers.pop(member_id, None)
        self.on_tick()

    def _uncertain(self) -> None:
        """Hearing was broken: nobody is judged on what was not heard, and what came meanwhile is read."""
        self._liveness.restart()
        self._settled.clear()
        self._hurried = HURRIED
        self._now.set()
        self.on_missed(None)

    def advertise(self, handlers: Mapping[str, Any], free_slots: Callable[[], int]) -> None:
        self._handlers, self._free_slots = handlers, free_slots
        self._now.set()

    def alive(self) -> Sequence[MemberInfo]:
        return [self._infos[member_id] for member_id in self._liveness.alive() if member_id in self._infos]

    def is_lost(self, member_id: str) -> bool:
        return self._liveness.is_lost(member_id)

    def withdraw(self, member_id: str, time_ms: int) -> None:
        """Another sign of life of a member that was believed lost."""
        self._liveness.withdraw(member_id, time_ms)

    async def settled(self) -> None:
        await self._settled.wait()

    async def close(self) -> None:
        """Say goodbye and stop. Idempotent."""
        if self._task is None:
            return
        await end(self._task, *self._unanswered)
        self._task = None
        with suppress(TimeoutError):  # the broker is away: the others will notice by themselves
            async with asyncio.timeout(2):
                await self._beat(goodbye=True)
        if self._following is not None:
            await self._following.close()


class QuietStreams:
    """Which streams to name in the next beats: those written since the last beat but one, twice each."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}  # key -> position, beats since it was written

    def wrote(self, key: str, position: int) -> None:
        self._last[key] = (position, 0)

    def __call__(self) -> Quiet:
        named: Quiet = []
        for key, (position, beats) in list(islice(self._last.items(), MOST_NAMED)):
            if beats > 0:
                named.append((key, position))
            if beats >= 2:
                del self._last[key]
            else:
                self._last[key] = (position, beats + 1)
        return named
