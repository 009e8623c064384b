"""Tools that run while an answer streams: against the reference, and where it says nothing."""

from __future__ import annotations

import asyncio
import gc
import gzip
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tailrace.message.accumulator import AssistantMessageAccumulator
from tailrace.message.chunks import UNDEFINED, Chunk, ResultChunk, ToolCallInit, chunk_from_json
from tailrace.message.errors import InvalidUpdate, ToolCallEnded, ToolInputUnsupported
from tailrace.message.message import ToolCallPart
from tailrace.message.tool_call import ToolResponse
from tailrace.message.tool_execution import AHEAD, ToolCall, ToolExecutionStream
from tailrace.message.tool_reader import ToolCallReader
from tailrace.message.tool_results import run_pending_tools, to_response, tool_result_stream
from tailrace.message.tool_schema import tool
from tailrace.message.tools import Tool, ToolContext, ToolOutput, by_name
from tailrace.wire.jsjson import parse, stringify

GOLDEN = Path(__file__).parents[2] / "golden" / "tools.json.gz"
VECTORS: Any = parse(gzip.decompress(GOLDEN.read_bytes()).decode())


async def turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


class Refused(Exception):
    reported_as = "Error"


class Played:
    """The tools of the recorded programs; what they and their watchers note."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.abort = asyncio.Event()
        self.log: list[Any] = []
        self.calls: list[Any] = []

    async def gate(self, context: ToolContext) -> None:
        await self.gates.setdefault(context.tool_call_id, asyncio.Event()).wait()

    def tools(self) -> dict[str, Tool]:
        async def soon(args: Any, context: ToolContext) -> Any:
            return args

        async def later(args: Any, context: ToolContext) -> Any:
            await self.gate(context)
            return args

        def fail(args: Any, context: ToolContext) -> Any:
            raise Refused("boom")

        async def fail_later(args: Any, context: ToolContext) -> Any:
            await self.gate(context)
            raise Refused("late")

        async def ask(args: Any, context: ToolContext) -> Any:
            return {"answer": await context.human(args)}

        async def patient(args: Any, context: ToolContext) -> Any:
            if context.abort.is_set():
                return "at once"
            await context.abort.wait()
            return "stopped"

        def no(given: ToolOutput) -> Any:
            raise Refused("no")

        async def model_later(given: ToolOutput) -> Any:
            return [{"type": "text", "text": "m"}]

        def model(given: ToolOutput) -> Any:
            return [{"type": "text", "text": given.tool_call_id + stringify([given.input, given.output])}]

        def response(args: Any, context: ToolContext) -> Any:
            return ToolResponse.from_json(args if isinstance(args, dict) else {})

        def echo(args: Any, context: ToolContext) -> Any:
            return args

        executes: dict[str, Any] = {
            "echo": echo,
            "soon": soon,
            "later": later,
            "fail": fail,
            "failLater": fail_later,
            "nothing": lambda args, context: UNDEFINED,
            "response": response,
            "ask": ask,
            "patient": patient,
        }
        tools = {name: Tool(type="frontend", parameters={}, execute=execute) for name, execute in executes.items()}
        return tools | {
            "model": Tool(execute=echo, to_model_output=model),
            "modelLater": Tool(execute=response, to_model_output=model_later),
            "badModel": Tool(execute=echo, to_model_output=no),
            "watch": Tool(execute=echo, stream_call=self.watch),
            "person": Tool(type="human", parameters={}),
            "server": Tool(type="backend"),
        }

    async def watch(self, reader: ToolCallReader, context: ToolContext) -> None:
        async def note(name: str, items: AsyncIterator[Any]) -> None:
            async for item in items:
                self.log.append([context.tool_call_id, name, item])

        async def number() -> None:
            n = await reader.args.get("n")
            self.log.append([context.tool_call_id, "n", None if n is UNDEFINED else n])

        async def answer() -> None:
            response = await reader.response.get()
            chunk = ResultChunk(
                response.result, response.is_error, response.artifact, response.model_content, response.messages
            ).to_json()
            del chunk["type"], chunk["path"]
            self.log.append([context.tool_call_id, "response", chunk])

        async with asyncio.TaskGroup() as group:
            group.create_task(note("text", reader.args.stream_text("q")))
            group.create_task(note("item", reader.args.for_each("l")))
            group.create_task(number())
            group.create_task(answer())

    async def human(self, tool_call_id: str, payload: Any) -> Any:
        if isinstance(payload, dict) and payload.get("refuse"):
            raise Refused("refused")
        return [tool_call_id, payload]

    def ended(self, *call: str) -> None:
        self.calls.append(["end", *call])
        raise Refused("ignored")

    async def play(self, prog: list[Any]) -> tuple[list[list[Any]], str | None]:
        source: asyncio.Queue[Chunk | None] = asyncio.Queue()

        async def chunks() -> AsyncIterator[Chunk]:
            while (chunk := await source.get()) is not None:
                yield chunk

        out: list[Any] = []
        steps = []

        async def read() -> str | None:
            try:
                async for chunk in tool_result_stream(
                    chunks(),
                    self.tools(),
                    abort=self.abort,
                    human=self.human,
                    on_execution_start=lambda *call: self.calls.append(["start", *call]),
                    on_execution_end=self.ended,
                ):
                    out.append(chunk.to_json())
            except InvalidUpdate as error:
                return str(error)
            return None

        reading = asyncio.create_task(read())
        for op, *arg in prog:
            match op:
                case "chunk":
                    source.put_nowait(chunk_from_json(arg[0]))
                case "open" if arg[0] in self.gates:
                    self.gates[arg[0]].set()
                case "abort":
                    self.abort.set()
                case "close":
                    source.put_nowait(None)
            await turns()
            steps.append(out[:])
            out.clear()
            if reading.done() and op != "close":
                break
        return steps, await asyncio.wait_for(reading, 10)


def our_words(response: Any) -> Any:
    """What is wrong with JSON, each parser says in words of its own."""
    result = response.get("result") if isinstance(response, dict) else None
    if isinstance(result, str) and result.startswith("Error: Function parameter parsing failed."):
        response["result"] = "bad JSON"
    return response


def by_path(chunks: list[Any]) -> list[str]:
    """The reference adds ``meta``, its own note of the part, to what it passes on. And several responses of one turn
    may come in another order; those of one call never do."""
    for chunk in chunks:
        chunk.pop("meta", None)
    return [stringify(our_words(chunk)) for chunk in sorted(chunks, key=lambda chunk: chunk["path"])]


async def test_every_recorded_answer() -> None:
    assert len(VECTORS["answers"]) > 200
    for case in VECTORS["answers"]:
        played = Played()
        steps, error = await played.play(case["prog"])
        assert error == case["error"], case["prog"]
        for at, (got, expected) in enumerate(zip(steps, case["steps"], strict=True)):
            assert by_path(got) == by_path(expected), (case["prog"], at)
        assert texts(played.log) == texts(case["log"]), case["prog"]
        if error is None:
            assert sorted(map(stringify, played.calls)) == sorted(map(stringify, case["calls"]))


def texts(log: list[Any]) -> list[str]:
    """What was noted, the pieces of one text joined; the reference also gives empty ones."""
    joined: dict[str, str] = {}
    rest = []
    for call, name, value in log:
        if name == "text" and not value:
            continue
        if name == "text":
            joined[call] = joined.get(call, "") + value
        else:
            rest.append(stringify([call, name, our_words(value)]))
    return [*sorted(rest), stringify(joined)]


async def test_every_recorded_message_whose_calls_wait() -> None:
    for case in VECTORS["pending"]:
        played = Played()
        accumulator = AssistantMessageAccumulator(clock=lambda: 1.0, new_id=lambda: "i")
        for chunk in case["chunks"]:
            accumulator.feed(chunk_from_json(chunk))
        accumulator.close()
        if case["aborted"]:
            played.abort.set()
        message = await run_pending_tools(accumulator.message, played.tools(), abort=played.abort, human=played.human)
        parts = [part.to_json() for part in message.parts]
        for part in parts:
            part.pop("timing", None)
        assert stringify(parts) == stringify(case["parts"]), case["chunks"]


# ── where the reference says nothing, or something else on purpose ──


def call(name: str, args: str, index: int = 0) -> list[Chunk]:
    return [
        chunk_from_json(value)
        for value in (
            {
                "type": "part-start",
                "path": [],
                "part": {"type": "tool-call", "toolName": name, "toolCallId": f"c{index}"},
            },
            {"type": "text-delta", "path": [index], "textDelta": args},
            {"type": "tool-call-args-text-finish", "path": [index]},
            {"type": "part-finish", "path": [index]},
        )
    ]


async def stream(chunks: list[Chunk]) -> AsyncIterator[Chunk]:
    for chunk in chunks:
        yield chunk


async def results(chunks: list[Chunk], **tools: Tool) -> list[ResultChunk]:
    return [one async for one in tool_result_stream(stream(chunks), tools) if isinstance(one, ResultChunk)]


class Point(BaseModel):
    x: int
    y: int = 0


async def test_a_model_checks_the_arguments_and_execute_gets_it() -> None:
    point = Tool(parameters=Point, execute=lambda args, context: args.model_copy(update={"y": args.x}))
    assert [one.result for one in await results(call("point", '{"x":"4","z":1}'), point=point)] == [{"x": 4, "y": 4}]
    (refused,) = await results(call("point", '{"x":"four"}'), point=point)
    assert refused.is_error
    issue = {"path": ["x"], "message": "Input should be a valid integer, unable to parse string as an integer"}
    assert refused.result == f"Error: Function parameter validation failed. {stringify([issue])}"


async def test_one_who_answers_for_bad_arguments_gets_them_as_they_are() -> None:
    point = Tool(parameters=Point, execute=lambda args, context: 1, on_invalid_args=lambda args, context: ["bad", args])
    assert [one.result for one in await results(call("point", "[1]"), point=point)] == [["bad", [1]]]


async def test_a_function_with_its_context() -> None:
    @tool
    async def greet(name: str, context: ToolContext, times: int = 2) -> list[str]:
        return [f"{name} {context.tool_call_id} {context.tool_name}"] * times

    (result,) = await results(call("greet", '{"name":"Ada"}'), **by_name(greet))
    assert result.result == ["Ada c0 greet"] * 2
    assert not result.is_error


async def test_what_no_json_can_say_is_the_tools_error() -> None:
    (result,) = await results(call("odd", "{}"), odd=Tool(execute=lambda args, context: object()))
    assert result.is_error
    assert result.result.startswith("PydanticSerializationError: ")
    assert to_response([Point(x=1), {"at": Point(x=2)}]).result == [{"x": 1, "y": 0}, {"at": {"x": 2, "y": 0}}]
    assert to_response(None).result is None
    assert to_response(UNDEFINED).result == "<no result>"


async def test_nobody_can_be_asked() -> None:
    async def ask(args: Any, context: ToolContext) -> Any:
        with pytest.raises(ToolInputUnsupported):
            await context.human("well?")
        return await context.human("really?")

    (result,) = await results(call("ask", "{}"), ask=Tool(execute=ask))
    assert (result.is_error, result.result) == (True, "Error: Tool human input is not supported in this context")


async def test_arguments_that_end_twice_run_the_tool_once() -> None:
    chunks = call("count", "{}")
    ran: list[Any] = []
    count = Tool(execute=lambda args, context: ran.append(args))
    assert len(await results([*chunks[:3], chunks[2], chunks[3]], count=count)) == 1
    assert ran == [{}]


async def test_tools_that_change_are_asked_for_at_each_call() -> None:
    tools: dict[str, Tool] = {}

    async def chunks() -> AsyncIterator[Chunk]:
        for chunk in call("late", "{}"):
            yield chunk
        tools["late"] = Tool(execute=lambda args, context: "here")
        for chunk in call("late", "{}", 1):
            yield chunk

    out = [one async for one in tool_result_stream(chunks(), lambda: tools)]
    assert [(one.path, one.result) for one in out if isinstance(one, ResultChunk)] == [((1,), "here")]


async def test_the_answer_goes_on_while_tools_run() -> None:
    opened = asyncio.Event()

    async def wait(args: Any, context: ToolContext) -> str:
        await opened.wait()
        return "done"

    chunks = [*call("wait", "{}"), *call("wait", "{}", 1)]
    seen = []
    async with asyncio.timeout(10):
        async for chunk in tool_result_stream(stream(chunks), {"wait": Tool(execute=wait)}):
            seen.append((chunk.type, chunk.path))
            if seen[-1] == ("tool-call-args-text-finish", (1,)):
                opened.set()
    assert sorted(seen[-4:]) == [(kind, (index,)) for kind in ("part-finish", "result") for index in (0, 1)]
    for index in (0, 1):
        assert seen.index(("result", (index,))) < seen.index(("part-finish", (index,)))


class Forever:
    """A tool that waits, and notes when it is cancelled; its watcher waits for the response."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.told = asyncio.Event()
        self.tool = Tool(execute=self.execute, stream_call=self.watch)

    async def execute(self, args: Any, context: ToolContext) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def watch(self, reader: ToolCallReader, context: ToolContext) -> None:
        try:
            await reader.response.get()
        except ToolCallEnded:
            self.told.set()
            raise


async def test_a_source_that_fails_ends_what_runs() -> None:
    forever = Forever()

    async def chunks() -> AsyncIterator[Chunk]:
        for chunk in call("forever", "{}"):
            yield chunk
        await forever.started.wait()
        raise OSError("gone")

    async with asyncio.timeout(10):
        seen: list[str] = []

        async def read() -> None:
            async for chunk in tool_result_stream(chunks(), {"forever": forever.tool}):
                seen.append(chunk.type)

        with pytest.raises(OSError, match="gone"):
            await read()
        assert seen == ["part-start", "text-delta", "tool-call-args-text-finish"]
        await forever.cancelled.wait()


async def test_a_reader_that_leaves_ends_what_runs_and_the_source() -> None:
    forever, closed = Forever(), asyncio.Event()

    async def chunks() -> AsyncIterator[Chunk]:
        try:
            for chunk in call("forever", "{}"):
                yield chunk
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with asyncio.timeout(10):
        async with aclosing(tool_result_stream(chunks(), {"forever": forever.tool})) as answer:
            async for chunk in answer:
                if chunk.type == "tool-call-args-text-finish":
                    await forever.started.wait()
                    break
        assert closed.is_set()
        await forever.cancelled.wait()


async def test_a_reader_that_leaves_at_once_leaves_nothing_behind() -> None:
    forever = Forever()

    async def chunks() -> AsyncIterator[Chunk]:
        for chunk in call("forever", "{}"):
            yield chunk
        raise OSError("for nobody")

    async with aclosing(tool_result_stream(chunks(), {"forever": forever.tool})) as answer:
        await anext(answer)
    del answer
    await turns()
    gc.collect()  # would tell of a coroutine that was never awaited, and of an exception that was never retrieved
    assert not forever.started.is_set()


async def test_an_abort_ends_a_tool_that_does_not_listen() -> None:
    forever, abort = Forever(), asyncio.Event()
    async with asyncio.timeout(10):
        out = []
        async for chunk in tool_result_stream(stream(call("forever", "{}")), {"forever": forever.tool}, abort=abort):
            out.append(chunk)
            if chunk.type == "tool-call-args-text-finish":
                await forever.started.wait()
                abort.set()
    assert [(one.result, one.is_error) for one in out if isinstance(one, ResultChunk)] == [
        ("Tool execution was cancelled.", True)
    ]
    await asyncio.wait_for(forever.cancelled.wait(), 10)


async def test_a_watcher_is_told_that_no_response_comes() -> None:
    forever = Forever()
    person = Tool(type="human", parameters={}, stream_call=forever.watch)
    async with asyncio.timeout(10):
        assert await results(call("person", "{}"), person=person) == []
        await forever.told.wait()


async def test_a_watcher_that_fails_is_logged_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async def watch(reader: ToolCallReader, context: ToolContext) -> None:
        raise ValueError("mine")

    watched = Tool(execute=lambda args, context: 1, stream_call=watch)
    assert [one.result for one in await results(call("watched", "{}"), watched=watched)] == [1]
    assert "stream_call of a tool failed: watched" in caplog.text


async def test_no_more_is_read_ahead_than_said_and_what_is_not_read_on_is_closed() -> None:
    read, closed = 0, False

    async def endless() -> AsyncIterator[Chunk]:
        nonlocal read, closed
        try:
            while True:
                read += 1
                yield chunk_from_json({"type": "data", "path": [], "data": [read]})
        finally:
            closed = True

    async with asyncio.timeout(10), aclosing(tool_result_stream(endless(), {})) as answer:
        for taken in range(1, 1000):
            await anext(answer)
            assert read <= taken + AHEAD
    assert closed


async def test_an_executor_may_answer_at_once_or_leave_it_to_others() -> None:
    def execute(call: ToolCall) -> ToolResponse | None:
        return ToolResponse(call.args, artifact=call.tool_call_id) if call.tool_name == "mine" else None

    told: list[str] = []

    def told_of(reader: ToolCallReader, init: ToolCallInit) -> None:
        told.append(init.tool_call_id)

    chunks = [*call("mine", "[1]"), *call("other", "{}", 1)]
    out = [one async for one in ToolExecutionStream(execute, told_of).run(stream(chunks))]
    assert [(one.result, one.artifact) for one in out if isinstance(one, ResultChunk)] == [([1], "c0")]
    assert told == ["c0", "c1"]
    assert [chunk.type for chunk in out].count("part-finish") == 2


async def test_one_waiting_call_that_fails_leaves_the_others_their_responses() -> None:
    def fail(args: Any, context: ToolContext) -> None:
        raise ValueError("boom")

    accumulator = AssistantMessageAccumulator(clock=lambda: 1.0, new_id=lambda: "i")
    for chunk in [*call("fail", "{}"), *call("fine", "{}", 1), *call("other", "{}", 2)]:
        accumulator.feed(chunk)
    tools = {"fail": Tool(execute=fail), "fine": Tool(execute=lambda args, context: 1)}
    message = await run_pending_tools(accumulator.message, tools)
    parts = [part for part in message.parts if isinstance(part, ToolCallPart)]
    assert [(part.state, part.result) for part in parts] == [
        ("result", "ValueError: boom"),
        ("result", 1),
        ("call", UNDEFINED),
    ]
    assert await run_pending_tools(message, tools) is message
