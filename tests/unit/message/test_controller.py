"""The controller against the reference: programs whose calls have a turn of the event loop between them."""

from __future__ import annotations

import asyncio
import gzip
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tailrace.message.chunks import (
    Chunk,
    InvalidChunk,
    ReasoningInit,
    SourceInit,
    TextDeltaChunk,
    chunk_from_json,
)
from tailrace.message.controller import AssistantStreamController, describe, drive
from tailrace.message.dialect import Dialect
from tailrace.message.errors import AnswerClosed, PartClosed, UnknownPart
from tailrace.message.ids import id_maker
from tailrace.message.tool_call import ToolResponse
from tailrace.message.values import JsonObject
from tailrace.wire.jsjson import parse, stringify

sys.path.insert(0, str(Path(__file__).parents[2] / "differential"))

from player import Boom, Player

GOLDEN = Path(__file__).parents[2] / "golden"
PROGRAMS: list[Any] = parse(gzip.decompress((GOLDEN / "messages.json.gz").read_bytes()).decode())["programs"]
DIALECTS: tuple[Dialect, ...] = ("0.3.44", "0.3.15")


def played(dialect: Dialect, prog: list[Any]) -> list[Chunk]:
    out: list[Chunk] = []
    Player(dialect).play(prog, out)
    return out


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_program(dialect: Dialect) -> None:
    assert len(PROGRAMS) > 250
    wrong = []
    for number, case in enumerate(PROGRAMS):
        expected = stringify(case[dialect]["chunks"])
        got = stringify([chunk.to_json() for chunk in played(dialect, case["prog"])])
        if got != expected:
            wrong.append((number, case["prog"], expected, got))
    assert not wrong, (len(wrong), wrong[0])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_golden_programs(dialect: Dialect) -> None:
    cases = parse((GOLDEN / f"vectors-{dialect}.json").read_text())["cases"]
    assert len(cases) == 15
    for case in cases:
        recorded = case["quiesced"]["chunks"]
        assert recorded["error"] is None
        got = [chunk.to_json() for chunk in played(dialect, case["prog"])]
        assert stringify(got) == stringify(recorded["out"]), case["name"]


def controller(**options: Any) -> tuple[AssistantStreamController, list[Chunk]]:
    out: list[Chunk] = []
    return AssistantStreamController(out.append, new_id=iter("abc").__next__, **options), out


def brief(chunks: list[Chunk]) -> list[Any]:
    return [list(chunk.to_json().values()) for chunk in chunks]


def test_parts_and_tools_are_context_managers() -> None:
    control, out = controller()
    with control.add_text_part() as text:
        text.append("a").append("b")
    with control.add_tool_call_part("search") as tool:
        tool.args.append('{"q":1}')
        tool.set_response(ToolResponse({"ok": True}, artifact="x"))
    control.finish()
    assert [chunk.type for chunk in out] == [
        *("part-start", "text-delta", "text-delta", "part-finish"),
        *("part-start", "text-delta", "result", "tool-call-args-text-finish", "part-finish"),
    ]
    assert out[4].to_json()["part"] == {"type": "tool-call", "toolName": "search", "toolCallId": "a"}
    assert control.finished


def test_a_part_left_by_an_exception_closes_after_the_error() -> None:
    control, out = controller()

    def handler(control: AssistantStreamController) -> None:
        with control.add_text_part() as text:
            text.append("a")
            raise Boom("b")

    asyncio.run(drive(handler, control))
    assert [chunk.type for chunk in out] == ["part-start", "text-delta", "error", "part-finish"]
    assert out[2].to_json()["error"] == "Error: b"


def test_what_is_open_at_the_end_is_closed_in_order() -> None:
    control, out = controller()
    control.add_text_part()
    control.add_tool_call_part("n", tool_call_id="t")
    control.append_text("x")
    control.finish()
    control.finish()
    assert brief(out[4:]) == [
        ["part-finish", [2]],
        ["part-finish", [0]],
        ["text-delta", "{}", [1]],
        ["tool-call-args-text-finish", [1]],
        ["part-finish", [1]],
    ]
    assert control.closed


def test_the_first_response_counts() -> None:
    control, out = controller()
    tool = control.add_tool_call_part("n", args={"b": 1.0, "a": "é"})
    tool.set_response({"result": 1})
    tool.set_response({"result": 2})
    tool.close()
    assert [chunk.to_json().get("result") for chunk in out if chunk.type == "result"] == [1]
    assert out[1].to_json()["textDelta"] == '{"b":1,"a":"é"}'


def test_given_arguments_and_response_keep_program_order() -> None:
    control, out = controller()
    control.add_tool_call_part("n", args_text="{}", response={})
    assert [chunk.type for chunk in out[1:]] == ["text-delta", "tool-call-args-text-finish", "result", "part-finish"]
    assert out[3].to_json()["result"] == "<no result>"


def test_json_in_the_place_of_a_chunk_or_a_part_is_refused_where_it_is_given() -> None:
    control, out = controller()
    source: Any = {"type": "source", "sourceType": "url", "id": "s", "url": "u"}
    data: Any = {"type": "data", "path": [], "data": []}
    with pytest.raises(InvalidChunk, match="chunk_from_json"):
        control.enqueue(data)
    with pytest.raises(InvalidChunk, match="part_from_json"):
        control.append_source(source)
    result: Any = "a plain result"
    with pytest.raises(InvalidChunk, match="ToolResponse"):
        control.add_tool_call_part("n").set_response(result)
    absent: Any = None  # as a model's delta without content has it
    with pytest.raises(InvalidChunk, match="not NoneType"):
        control.append_text(absent)
    assert all(isinstance(chunk, JsonObject) for chunk in out)
    assert not any(isinstance(chunk, TextDeltaChunk) and chunk.text_delta is None for chunk in out)


def test_text_after_the_close() -> None:
    control, out = controller()
    part = control.add_text_part()
    part.close()
    with pytest.raises(PartClosed, match="closed TextStreamController") as caught:
        part.append("late")
    assert describe(caught.value) == "TypeError: Cannot append to a closed TextStreamController"
    lenient, out = controller(strict=False)
    part = lenient.add_text_part()
    part.close()
    part.append("late")
    assert [chunk.type for chunk in out] == ["part-start", "part-finish"]


def test_nothing_new_after_the_close() -> None:
    control, out = controller()
    open_part = control.add_text_part()
    control.append_reasoning("r")
    control.close()
    control.close()
    open_part.append("still")
    open_part.close()
    assert [chunk.type for chunk in out[-2:]] == ["text-delta", "part-finish"]
    count = len(out)
    late: list[Callable[[], object]] = [
        control.add_text_part,
        lambda: control.append_text("x"),
        lambda: control.append_source(SourceInit("s", "u")),
        lambda: control.enqueue(out[0]),
        control.merging,
    ]
    for write in late:
        with pytest.raises(AnswerClosed):
            write()
    assert len(out) == count


def test_a_summary_opens_a_part_of_its_own() -> None:
    control, out = controller()
    control.append_reasoning("a")
    control.append_reasoning("", summary="S")
    control.append_reasoning("b")
    assert brief(out) == [
        ["part-start", {"type": "reasoning"}, []],
        ["text-delta", [0], "a"],
        ["part-finish", [0]],
        ["part-start", {"type": "reasoning", "unstable_summary": "S"}, []],
        ["text-delta", [1], "b"],
    ]
    assert isinstance(chunk_from_json(out[3].to_json()).part, ReasoningInit)  # type: ignore[union-attr]


async def test_merged_answers_get_the_next_indices() -> None:
    inner, chunks = controller()
    inner.append_text("x")
    inner.append_source(SourceInit("s", "u"))
    inner.finish()

    async def live() -> AsyncIterator[Chunk]:
        for chunk in chunks:
            await asyncio.sleep(0)
            yield chunk

    async def handler(control: AssistantStreamController) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(control.merge(live()))
            group.create_task(control.merge(live()))
            control.append_text("own")
        await control.merge(chunks)

    control, out = controller()
    assert await drive(handler, control) is None
    starts = [chunk for chunk in out if chunk.type == "part-start"]
    assert len(starts) == 7
    assert {chunk.path for chunk in out if chunk.path} == {(index,) for index in range(7)}
    assert len([chunk for chunk in out if chunk.type == "part-finish"]) == 7
    assert control.finished


async def test_a_merged_answer_is_closed_where_the_outer_one_takes_no_more() -> None:
    closed = False

    async def live() -> AsyncIterator[Chunk]:
        nonlocal closed
        try:
            while True:
                yield chunk_from_json({"type": "data", "path": [], "data": []})
                control.finish()
        finally:
            closed = True

    control, out = controller()
    with pytest.raises(AnswerClosed):
        await control.merge(live())
    assert (closed, len(out)) == (True, 1)


def test_a_merged_chunk_of_a_part_that_never_opened() -> None:
    control, _ = controller()
    merge = control.merging()
    with pytest.raises(UnknownPart):
        merge.push(chunk_from_json({"type": "text-delta", "path": [0], "textDelta": "x"}))
    control.finish()
    with pytest.raises(AnswerClosed):
        merge.push(chunk_from_json({"type": "data", "path": [], "data": []}))


async def test_the_handler_decides_the_ending() -> None:
    control, out = controller()

    async def fails(control: AssistantStreamController) -> None:
        raise ValueError

    assert isinstance(await drive(fails, control), ValueError)
    assert brief(out) == [["error", [], "ValueError"]]

    async def fails_late(control: AssistantStreamController) -> None:
        control.close()
        raise ValueError("quiet")

    control, out = controller()
    assert str(await drive(fails_late, control, describe=lambda error: "hidden")) == "quiet"
    assert out == []

    async def hangs(control: AssistantStreamController) -> None:
        control.append_text("a")
        await asyncio.Event().wait()

    control, out = controller()
    task = asyncio.create_task(drive(hangs, control))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [chunk.type for chunk in out] == ["part-start", "text-delta", "part-finish"]


def test_ids_have_seven_alphanumerics() -> None:
    numbers = iter((0, 9, 10, 35, 36, 61, 1))
    assert id_maker(lambda n: next(numbers) % n)() == "09AZaz1"


def test_finished_means_closed_and_nothing_open() -> None:
    control, _ = controller()
    part = control.add_text_part()
    seen = [control.finished]
    control.close()
    seen.append(control.finished)
    part.close()
    seen.append(control.finished)
    assert seen == [False, False, True]
