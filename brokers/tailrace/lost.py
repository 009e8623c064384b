"""Ending the streams of lost processes.

Theory. A stream whose owner is silent for longer than a lease, as this process hears it, is ended by one record: a
takeover that carries the ending. It is written by a task of the store, never by a request, and is conditional on the
last position: any newer record of the owner withdraws the judgement.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from tailrace import decide
from tailrace.commit import insist, new_nonce
from tailrace.fold import State
from tailrace.log import Log
from tailrace.members import Membership
from tailrace.records import Record
from tailrace.sealing import Sealer
from tailrace.tails import Tails

logger = logging.getLogger("tailrace.store")
Decision = Callable[[State], Record | None]
Act = Callable[[str, Decision], Awaitable[Record | None]]
Spawn = Callable[[Coroutine[Any, Any, None]], object]


class Coroner:
    """Judges the owners of streams, and ends the streams of those that are lost. ``act`` folds, decides and commits."""

    def __init__(self, log: Log, members: Membership, tails: Tails, sealer: Sealer, act: Act, spawn: Spawn) -> None:
        self._log, self._members, self._tails, self._sealer = log, members, tails, sealer
        self._act, self._spawn = act, spawn
        self._ending: set[str] = set()

    def look(self) -> None:
        """An own heartbeat came back: who is lost, and which of the followed streams does that end?"""
        for tail in self._tails.live():
            self.judge(tail.stream_id, tail.state)

    def judge(self, stream_id: str, state: State) -> None:
        """End the stream, soon, if its owner is lost."""
        owner = state.owner
        if owner is None or stream_id in self._ending or not decide.ends_when_lost(state):
            return
        if self._members.is_lost(owner):
            self._ending.add(stream_id)
            self._spawn(self._end(stream_id, owner, state))

    async def _end(self, stream_id: str, owner: str, judged: State) -> None:
        decision = partial(self._decide, stream_id, owner, judged, new_nonce())
        try:
            record = await insist(lambda: self._act(stream_id, decision))
            if record is not None:
                logger.info("ended a lost stream", extra={"stream": stream_id, "epoch": record.epoch, "owner": owner})
                self._sealer.offer(stream_id)
        finally:
            self._ending.discard(stream_id)

    def _decide(self, stream_id: str, owner: str, judged: State, nonce: str, state: State) -> Record | None:
        if decide.newer_sign_of_life(judged, state):
            self._members.withdraw(owner, self._log.now_ms())
            self._tails.check([(self._log.key(stream_id), state.position)])  # its readers lack that sign
            return None
        return decide.takeover(state, stream_id, nonce, judged.mark, decide.LOST)
