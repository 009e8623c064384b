"""Appending a record when the broker may refuse, stay silent or be away.

Rules:

- A retry sends the identical record under the identical condition, so at most one copy is ever stored.
- A refusal or a silence proves nothing: the stream's last record, read from the leader, does (`decide.outcome`).
- Only a newer record that is not ours is a reason to think again: `Moved`, and the caller folds and decides.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Self, TypeVar

from tailrace import decide
from tailrace.errors import BrokerUnavailable, TailraceError
from tailrace.log import AppendRefused, AppendUnknown, Log
from tailrace.records import Record

T = TypeVar("T")

_PROCESS = secrets.token_hex(5)
_COUNT = count(1)


def new_nonce() -> str:
    """A nonce for a record: unique over processes and starts."""
    return f"{_PROCESS}{next(_COUNT):x}"


class Moved(Exception):
    """A newer record came between: nothing was stored."""


class Rewound(Exception):
    """The log ends before a position that it had acknowledged: it lost records. Nothing was stored."""


class backoff:  # used like a function
    """Attempt numbers with growing, jittered pauses between them, for ever. (No generator: one that is left before its
    end, as this always is, costs a task to close it.)"""

    def __init__(self, first: float = 0.02, longest: float = 1.0) -> None:
        self._pause = first
        self._longest = longest
        self._attempt = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        if self._attempt:
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))
            self._pause = min(self._pause * 2, self._longest)
        self._attempt += 1
        return self._attempt


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat ``call`` while the broker is away."""
    async for _ in backoff():
        try:
            return await call()
        except BrokerUnavailable:
            continue
    raise AssertionError("backoff never ends")


async def commit(log: Log, record: Record, expected: int, *, patient: bool) -> int:
    """Store ``record`` behind position ``expected`` and return its position.

    ``patient`` waits for a broker that is away for as long as it takes (a live lease's appends); otherwise
    `BrokerUnavailable` is raised where it is sure that nothing was stored, and only there: an unknown outcome is always
    resolved first. Raises `Moved`, `Rewound`, and other broker errors as they come.
    """
    sent = False
    async for _ in backoff():
        try:
            return await log.append(record, expected)
        except BrokerUnavailable:
            if not (patient or sent):
                raise
            continue
        except (AppendUnknown, AppendRefused):
            sent = True
        except TailraceError:  # a second copy was refused: that says nothing of the first
            if not sent or (position := await _resolve(log, record, expected)) is None:
                raise
            return position
        position = await _resolve(log, record, expected)
        if position is not None:
            return position
    raise AssertionError("backoff never ends")


async def _resolve(log: Log, record: Record, expected: int) -> int | None:
    """The position of ``record`` if it landed, None if it is to be sent again."""
    last = await insist(lambda: log.last(record.stream_id))
    match decide.outcome(record, expected, last):
        case decide.Outcome.LANDED:
            assert last is not None
            return last.position
        case decide.Outcome.RESEND:
            return None
        case decide.Outcome.MOVED:
            raise Moved
        case decide.Outcome.REWOUND:
            raise Rewound
