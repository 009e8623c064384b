"""The handler ``recite``: an answer of parts that its input spells out, at a rate. For demonstrations and tests of
readers, without a model."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from tailrace.message.chunks import (
    UNDEFINED,
    DataInit,
    FileInit,
    Json,
    MessageFinishChunk,
    SourceInit,
    StepFinishChunk,
    StepStartChunk,
)
from tailrace.message.schema import validate_chunk
from tailrace.message.text import TextWriter
from tailrace.message.tool_call import ToolResponse
from tailrace.wire.jsjson import stringify
from tailrace.worker.answer import Controller
from tailrace.worker.handlers import RunContext, handler


class Meter:
    """Keeps to ``rate`` beats a second (0 or None: none at all), by a schedule and not by pauses: what is done between
    two beats is not added to the interval."""

    def __init__(self, rate: float | None) -> None:
        self._pause = 1 / rate if rate else 0.0
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()

    async def beat(self) -> None:
        """Wait for the next one."""
        if self._pause:
            self._due += self._pause
            await asyncio.sleep(self._due - self._loop.time())


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    parent_id: str | None = None


class Text(_Part):
    type: Literal["text", "reasoning"]
    text: str


class ToolCall(_Part):
    """``args`` or, to the letter, ``args_text``; without a result the call stays unanswered."""

    type: Literal["tool-call"]
    tool_name: str
    tool_call_id: str | None = None
    args: dict[str, Any] | None = None
    args_text: str | None = None
    result: Any = None
    artifact: Any = None
    is_error: bool = False


class Source(_Part):
    type: Literal["source"]
    id: str
    url: str
    title: str | None = None


class File(_Part):
    """``data`` is base64 or a URL."""

    type: Literal["file"]
    data: str
    mime_type: str


class Data(_Part):
    type: Literal["data"]
    name: str
    data: Any


def _checked(value: dict[str, Any]) -> dict[str, Any]:
    validate_chunk(value)
    return value


class AnyChunk(BaseModel):
    """Any chunk of the model as it is; one that opens a part counts as the next part."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["chunk"]
    chunk: Annotated[dict[str, Any], AfterValidator(_checked)]


class Raise(BaseModel):
    """Fails here."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["raise"]
    message: str


Line: TypeAlias = Annotated[
    Text | ToolCall | Source | File | Data | AnyChunk | Raise,
    Field(discriminator="type"),
]


class ReciteInput(BaseModel):
    """``script`` in order, texts and arguments in pieces of ``chunk`` characters, ``rate`` pieces a second (0 or null:
    as fast as they are stored). Around it the step and the message begin and end, unless ``finish`` is null."""

    model_config = ConfigDict(extra="forbid")

    script: list[Line]
    rate: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    chunk: int = Field(default=16, ge=1)
    finish: Literal["stop", "length", "content-filter", "tool-calls", "error", "other", "unknown"] | None = "stop"


class Recital(Exception):
    """What a script says to raise."""


@handler("recite")
async def recite(input: ReciteInput, controller: Controller, run: RunContext) -> None:
    """The parts of the script. The message's id is the stream's."""
    reciter = Reciter(input, controller)
    if input.finish is not None:
        controller.enqueue(StepStartChunk(run.stream_id))
    for line in input.script:
        await reciter.say(line)
    if input.finish is not None:
        usage: dict[str, Json] = {"inputTokens": len(input.script), "outputTokens": reciter.pieces}
        controller.enqueue(StepFinishChunk(input.finish, usage))
        controller.enqueue(MessageFinishChunk(input.finish, usage))


class Reciter:
    """Says lines with a controller; ``pieces`` counts them."""

    def __init__(self, input: ReciteInput, controller: Controller) -> None:
        self.pieces = 0
        self._size = input.chunk
        self._meter = Meter(input.rate)
        self._controller = controller

    async def say(self, line: Line) -> None:
        match line:
            case Raise():
                raise Recital(line.message)
            case AnyChunk():
                self._controller.enqueue(validate_chunk(line.chunk))
                await self._pause()
            case _:
                owner = self._controller
                await self._part(line, owner if line.parent_id is None else owner.with_parent_id(line.parent_id))

    async def _part(self, line: Text | ToolCall | Source | File | Data, controller: Controller) -> None:
        match line:
            case Text():
                with controller.add_text_part() if line.type == "text" else controller.add_reasoning_part() as part:
                    await self._spell(part, line.text)
            case ToolCall():
                await self._call(line, controller)
            case Source():
                controller.append_source(SourceInit(line.id, line.url, UNDEFINED if line.title is None else line.title))
            case File():
                controller.append_file(FileInit(line.data, line.mime_type))
            case Data():
                controller.append_data(DataInit(line.name, line.data))
        if not isinstance(line, Text | ToolCall):
            await self._pause()

    async def _call(self, line: ToolCall, controller: Controller) -> None:
        with controller.add_tool_call_part(line.tool_name, tool_call_id=line.tool_call_id) as call:
            with call.args as args:
                await self._spell(args, line.args_text or ("" if line.args is None else stringify(line.args)))
            if line.model_fields_set & {"result", "artifact"}:
                artifact = line.artifact if "artifact" in line.model_fields_set else UNDEFINED
                call.set_response(ToolResponse(line.result, artifact, line.is_error))
                await self._pause()

    async def _spell(self, part: TextWriter, text: str) -> None:
        for start in range(0, len(text), self._size):
            part.append(text[start : start + self._size])
            await self._pause()

    async def _pause(self) -> None:
        self.pieces += 1
        await self._controller.drain()
        await self._meter.beat()
