"""Runs tools: of an answer that streams, or of a message whose tool calls wait.

Rules:

- A tool gets its arguments checked, if its parameters are a pydantic model, and what it gives becomes plain JSON.
- What it raises becomes an error response, ``Type: message``.
- When ``abort`` is set, a running tool has a turn of the event loop to answer by itself. Then it is cancelled, and the
  response is the error ``Tool execution was cancelled.``
- ``to_model_output`` is asked for the model's view of a good result that has none; if it fails, the result stays.

Following toolResultStream and unstable_runPendingTools of assistant-stream 0.3.44, with these differences: a pydantic
model's `execute` gets the model, not the unchecked arguments; a tool that ignores an abort is cancelled; and where one
tool of `run_pending_tools` fails, upstream loses the responses of all, here that one's is an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import replace
from inspect import isawaitable
from typing import Any, TypeAlias, TypeGuard

from tailrace.message.chunks import UNDEFINED, Chunk, Json, ToolCallInit
from tailrace.message.controller import describe
from tailrace.message.errors import InvalidToolArgs
from tailrace.message.message import Message, Part, ToolCallPart
from tailrace.message.tool_call import NO_RESULT, ToolResponse
from tailrace.message.tool_execution import Listener, ToolCall, ToolExecutionStream, begin, drop
from tailrace.message.tool_reader import ToolCallReader
from tailrace.message.tool_schema import adapter_of
from tailrace.message.tools import Execute, Human, Tool, ToolContext, ToolOutput
from tailrace.wire.jsjson import stringify

Tools: TypeAlias = Mapping[str, Tool]

_CANCELLED = ToolResponse("Tool execution was cancelled.", is_error=True)

_log = logging.getLogger(__name__)


def tool_result_stream(
    chunks: AsyncIterable[Chunk],
    tools: Tools | Callable[[], Tools],
    *,
    abort: asyncio.Event | None = None,
    human: Human | None = None,
    on_execution_start: Listener | None = None,
    on_execution_end: Listener | None = None,
) -> AsyncGenerator[Chunk]:
    """The answer ``chunks`` with the responses of its tool calls, which are run here if ``tools`` can.

    ``tools`` may be a function, which is asked at each call. Set ``abort`` to cancel what runs; ``human`` is whom tools
    ask. Calls of other tools pass through. Close the generator (``contextlib.aclosing``) if you do not read it to its
    end. Raises what ``chunks`` raises, and InvalidUpdate for chunks that fit no part.
    """
    current = tools if callable(tools) else lambda: tools
    aborted = abort or asyncio.Event()

    def execute(call: ToolCall) -> Awaitable[ToolResponse] | None:
        return respond(current().get(call.tool_name), call, aborted, human)

    def stream_call(reader: ToolCallReader, init: ToolCallInit) -> Awaitable[None] | None:
        tool = current().get(init.tool_name)
        if tool is None or tool.stream_call is None:
            return None
        return tool.stream_call(reader, ToolContext(init.tool_call_id, init.tool_name, aborted, human))

    stream = ToolExecutionStream(
        execute, stream_call, on_execution_start=on_execution_start, on_execution_end=on_execution_end
    )
    return stream.run(chunks)


async def run_pending_tools(
    message: Message, tools: Tools, *, abort: asyncio.Event | None = None, human: Human | None = None
) -> Message:
    """The message with the responses of those of its waiting tool calls that ``tools`` can run, all at once."""
    aborted = abort or asyncio.Event()
    running: dict[str, asyncio.Task[ToolResponse]] = {}
    for part in message.parts:
        if _waits(part):
            call = ToolCall(part.tool_call_id, part.tool_name, part.args)
            response = respond(tools.get(part.tool_name), call, aborted, human)
            if response is not None:
                running[part.tool_call_id] = begin(_caught(response), response)
    if not running:
        return message
    try:
        await asyncio.wait(running.values())
    finally:
        for task in running.values():
            task.cancel()
    parts = message.parts
    for index, part in enumerate(message.parts):
        if _waits(part) and part.tool_call_id in running:
            parts = parts.set(index, _answered(part, running[part.tool_call_id].result()))
    return replace(message, parts=parts)


def respond(
    tool: Tool | None, call: ToolCall, abort: asyncio.Event, human: Human | None = None
) -> Awaitable[ToolResponse] | None:
    """Runs one call. None if the tool is unknown or has no ``execute``; the awaitable raises what the tool raises."""
    if tool is None or tool.execute is None:
        return None
    return _respond(tool, tool.execute, call, ToolContext(call.tool_call_id, call.tool_name, abort, human))


async def _respond(tool: Tool, execute: Execute, call: ToolCall, context: ToolContext) -> ToolResponse:
    if context.abort.is_set():
        return _CANCELLED
    args, execute = _checked(tool, execute, call.args)
    running = asyncio.create_task(_run(tool, execute, args, call, context))
    aborted = asyncio.create_task(context.abort.wait())
    try:
        await asyncio.wait((running, aborted), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            await asyncio.wait((running,), timeout=0)
        if running.done() and not running.cancelled():
            return running.result()
        return _CANCELLED
    finally:
        aborted.cancel()
        running.cancel()
        running.add_done_callback(drop)


async def _run(tool: Tool, execute: Execute, args: Any, call: ToolCall, context: ToolContext) -> ToolResponse:
    response = to_response(await _value(execute(args, context)))
    if tool.to_model_output is None or response.is_error or response.model_content is not UNDEFINED:
        return response
    try:
        content = await _value(tool.to_model_output(ToolOutput(call.tool_call_id, call.args, response.result)))
        return replace(response, model_content=plain(list(content)))
    except Exception:  # noqa: BLE001 - the result itself is good
        _log.exception("to_model_output of a tool failed: %s", call.tool_name)
        return response


def _checked(tool: Tool, execute: Execute, args: Json) -> tuple[Any, Execute]:
    """The arguments as `execute` wants them, or as they are for the one who answers for bad ones."""
    adapter = adapter_of(tool.parameters)
    if adapter is None:
        return args, execute
    from pydantic import ValidationError

    try:
        return adapter.validate_python(args), execute
    except ValidationError as error:
        if tool.on_invalid_args is not None:
            return args, tool.on_invalid_args
        issues = [{"path": list(one["loc"]), "message": one["msg"]} for one in error.errors(include_url=False)]
        raise InvalidToolArgs(f"Function parameter validation failed. {stringify(issues)}") from None


def to_response(value: Any) -> ToolResponse:
    """What a tool gave, as a response of plain JSON. None is ``null``; UNDEFINED is no result, and says so."""
    response = value if isinstance(value, ToolResponse) else ToolResponse(value)
    result = NO_RESULT if response.result is UNDEFINED else plain(response.result)
    return replace(response, result=result, artifact=plain(response.artifact), messages=plain(response.messages))


def plain(value: Any) -> Json:
    """The JSON of a value: of pydantic models, dataclasses, dates and the like, as pydantic writes them.

    Raises pydantic_core.PydanticSerializationError for what has none.
    """
    if value is None or value is UNDEFINED or type(value) in (str, bool, int, float):
        return value
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


async def _value(value: Any) -> Any:
    return await value if isawaitable(value) else value


async def _caught(response: Awaitable[ToolResponse]) -> ToolResponse:
    try:
        return await response
    except Exception as error:  # noqa: BLE001 - whatever a tool raises is its response
        return ToolResponse(describe(error), is_error=True)


def _waits(part: Part) -> TypeGuard[ToolCallPart]:
    return isinstance(part, ToolCallPart) and part.state != "result" and part.result is UNDEFINED


def _answered(part: ToolCallPart, response: ToolResponse) -> ToolCallPart:
    given = {
        "artifact": response.artifact,
        "modelContent": response.model_content,
        "messages": response.messages,
        "result": response.result,
        "isError": response.is_error,
    }
    given = {name: value for name, value in given.items() if value is not UNDEFINED}
    return replace(part, state="result", response={**part.response, **given})
