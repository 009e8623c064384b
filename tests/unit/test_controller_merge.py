"""Another answer in a handler's: at which pace it comes, who closes it, and which message it makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tailrace.errors import TooMuchPending
from tailrace.message import (
    Chunk,
    InvalidUpdate,
    TextDeltaChunk,
    Tool,
    ToolCallPart,
    chunk_from_json,
    tool_result_stream,
)
from tailrace.message.tools import ToolContext
from tailrace.worker import Controller

CALL = [
    {"type": "part-start", "part": {"type": "tool-call", "toolName": "now", "toolCallId": "c"}, "path": []},
    {"type": "text-delta", "path": [0], "textDelta": '{"zone":"UTC"}'},
    {"type": "tool-call-args-text-finish", "path": [0]},
    {"type": "part-finish", "path": [0]},
]


class Source:
    """The chunks of a call; notes how many were read, and that it was closed."""

    def __init__(self) -> None:
        self.read = 0
        self.closed = asyncio.Event()

    async def chunks(self) -> AsyncIterator[Chunk]:
        try:
            for chunk in CALL:
                self.read += 1
                yield chunk_from_json(chunk)
        finally:
            self.closed.set()


async def turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_it_drains_behind_each_chunk() -> None:
    room = asyncio.Semaphore(0)

    async def drain() -> None:
        await room.acquire()

    written: list[Chunk] = []
    source = Source()
    merging = asyncio.create_task(Controller(written.append, drain).merge(source.chunks()))
    for taken in range(1, len(CALL) + 1):
        await turns()
        assert (len(written), source.read) == (taken, taken)
        room.release()
    await merging
    assert source.closed.is_set()


async def test_a_plain_list_drains_too() -> None:
    drained: list[int] = []
    written: list[Chunk] = []

    async def drain() -> None:
        drained.append(len(written))

    await Controller(written.append, drain).merge([chunk_from_json(chunk) for chunk in CALL])
    assert drained == [1, 2, 3, 4]


@pytest.mark.parametrize("way", ["merge", "accumulate"])
async def test_a_cancel_while_it_drains_closes_what_is_merged_and_its_tools(way: str) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(args: object, context: ToolContext) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def drain() -> None:
        if started.is_set():
            await asyncio.Event().wait()
        await turns()

    source = Source()
    controller = Controller(lambda chunk: None, drain)
    answer = tool_result_stream(source.chunks(), {"now": Tool(execute=wait)})
    merging = asyncio.create_task(getattr(controller, way)(answer))
    await started.wait()
    await turns()
    merging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await merging
    assert source.closed.is_set()
    await cancelled.wait()


async def test_a_refused_chunk_closes_what_is_merged() -> None:
    def refuse(chunk: Chunk) -> None:
        if isinstance(chunk, TextDeltaChunk):
            raise TooMuchPending("too much")

    source = Source()
    with pytest.raises(TooMuchPending):
        await Controller(refuse).merge(source.chunks())
    assert (source.read, source.closed.is_set()) == (2, True)


async def test_each_accumulated_answer_is_a_message_of_its_own() -> None:
    written: list[Chunk] = []
    controller = Controller(written.append)
    tools = {"now": Tool(execute=lambda args, context: f"noon in {args['zone']}")}
    for index in range(2):
        message = await controller.accumulate(tool_result_stream(Source().chunks(), tools))
        (part,) = message.tool_calls
        assert (part.args, part.result) == ({"zone": "UTC"}, "noon in UTC")
        assert message.status.type == "complete"
        assert written[-1].path == (index,)
    left = await controller.accumulate(Source().chunks())
    assert left.status.type == "requires-action"
    assert isinstance(left.parts[0], ToolCallPart)


async def test_what_builds_no_message_is_refused() -> None:
    change = {"type": "update-state", "path": [], "operations": [{"type": "append-text", "path": ["a"], "value": "x"}]}
    written: list[Chunk] = []
    with pytest.raises(InvalidUpdate):
        await Controller(written.append).accumulate([chunk_from_json(change)])
    await Controller(written.append).merge([chunk_from_json(change)])
    assert len(written) == 1
