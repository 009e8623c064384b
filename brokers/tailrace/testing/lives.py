"""A stream on a log, written record by record as one process would, for tests below the store."""

from __future__ import annotations

from typing import Protocol, Self

from tailrace import decide
from tailrace.commit import new_nonce
from tailrace.fold import State, fold
from tailrace.log import Log
from tailrace.model import Claim
from tailrace.records import Record, Stored
from tailrace.testing.worlds import replay

CLAIM = Claim("somebody", 60.0, 3600.0, "text/plain", ())


class HasLog(Protocol):
    @property
    def log(self) -> Log: ...


def claim(stream_id: str, state: State = State(), owner: int = 7) -> Record:  # a state never changes
    """The claim of a stream that is free; ``owner`` is the nonce of its incarnation."""
    record = decide.claim(state, stream_id, owner, CLAIM)
    assert record is not None
    return record


def word(state: State, stream_id: str, chunk: bytes = b"word ") -> Record:
    """The record that appends one chunk."""
    assert state.mark is not None
    return decide.chunks(state.mark, stream_id, new_nonce(), [chunk])


class Life:
    """A stream as one process writes it, and knows it."""

    def __init__(self, broker: HasLog, stream_id: str = "s") -> None:
        self.log = broker.log
        self.id = stream_id
        self.state = State()

    async def put(self, record: Record | None) -> Stored:
        """Store a record behind the last one."""
        assert record is not None
        stored = Stored(await self.log.append(record, self.state.position), -1, self.log.now_ms(), record)
        self.state, _ = fold(self.state, stored)
        return stored

    async def begin(self, *chunks: bytes, owner: int = 7) -> Self:
        await self.put(claim(self.id, self.state, owner))
        for chunk in chunks:
            await self.word(chunk)
        return self

    async def word(self, chunk: bytes) -> Stored:
        return await self.put(word(self.state, self.id, chunk))

    async def end(self) -> Stored:
        assert self.state.mark is not None
        return await self.put(decide.finish(self.state.mark, self.id, new_nonce(), decide.ending("done", None, None)))

    async def delete(self) -> Stored:
        return await self.put(decide.tombstone(self.state, self.id, new_nonce()))

    async def look(self) -> State:
        """Learn what others wrote."""
        self.state, _ = replay(await self.log.read(self.id))
        return self.state
