"""Handlers that take a controller: what is read from their signatures, how they are called, and what `recite` says."""

import asyncio
import json
import sys
import types
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tailrace.errors import InvalidInput, UnknownFormat
from tailrace.message import (
    UNDEFINED,
    AnnotationsChunk,
    Chunk,
    MessageFinishChunk,
    PartStartChunk,
    ResultChunk,
    StepFinishChunk,
    StepStartChunk,
    TextDeltaChunk,
)
from tailrace.message.controller import AssistantStreamController
from tailrace.wire import FORMATS
from tailrace.worker import Controller, Handler, InvalidHandler, RunContext, handler, load
from tailrace.worker.builtin import recite
from tailrace.worker.outlet import Outlet, OutletClosed
from tailrace.worker.recite import Recital

RUN = RunContext("s", "chat")


class Prompt(BaseModel):
    text: str


async def said(one: Handler, input: object) -> list[Chunk]:
    chunks: list[Chunk] = []
    controller = Controller(chunks.append)
    await one.answer(one.parse(json.dumps(input).encode()), controller, RUN)
    controller.finish()
    return chunks


async def test_controller_and_context_come_by_annotation_in_any_order() -> None:
    @handler()
    async def alone(input: Prompt, controller: Controller) -> None:
        controller.append_text(input.text)

    @handler(headers={"x-a": "b"})
    async def last(input: Prompt, run: RunContext, writer: Controller) -> None:
        writer.append_text(run.stream_id)

    @handler()
    async def pure(input: Prompt, controller: AssistantStreamController, run: RunContext) -> None:
        controller.append_text(run.stream_id)

    for one, text in ((alone, "hi"), (last, "s"), (pure, "s")):
        (delta,) = [chunk for chunk in await said(one, {"text": "hi"}) if isinstance(chunk, TextDeltaChunk)]
        assert delta.text_delta == text
    assert [one.takes_context for one in (alone, last, pure)] == [False, True, True]
    assert all(one.takes_controller for one in (alone, last, pure))
    assert (last.headers, last.content_type) == ((("x-a", "b"),), "text/plain; charset=utf-8")


async def test_a_handler_is_called_like_the_function_that_it_is() -> None:
    @handler()
    async def chat(input: Prompt, controller: Controller) -> None:
        child = controller.with_parent_id("p")
        child.append_text(input.text)
        await child.drain()

    chunks: list[Chunk] = []
    await chat(Prompt(text="a"), Controller(chunks.append))
    assert isinstance(chunks[0], PartStartChunk)
    assert chunks[0].part.parent_id == "p"


def test_a_bare_function_that_takes_a_controller_is_loaded() -> None:
    async def chat(input: Prompt, controller: Controller) -> None: ...

    module = types.ModuleType("controller_handlers")
    vars(module)["chat"] = chat
    sys.modules["controller_handlers"] = module
    (one,) = load("controller_handlers:chat")
    assert (one.name, one.takes_controller) == ("chat", True)


def _wrong() -> dict[str, Any]:
    async def unannotated(input: Prompt, controller) -> None: ...  # type: ignore[no-untyped-def]
    async def none(input: Prompt) -> None: ...
    async def two(input: Prompt, one: Controller, other: Controller) -> None: ...
    async def unknown(input: Prompt, one: Controller, other: int) -> None: ...
    async def four(input: Prompt, one: Controller, run: RunContext, other: int) -> None: ...
    def synchronous(input: Prompt, controller: Controller) -> None: ...
    async def both(input: Prompt, controller: Controller) -> AsyncIterator[str]:
        yield ""

    return {
        "takes no controller": unannotated,
        "and takes no controller: `yield`": none,
        "annotate one parameter of one, other with Controller": two,
        "another with RunContext": unknown,
        "two or three parameters": four,
        "declare it `async def`": synchronous,
        "yields and takes a controller": both,
    }


@pytest.mark.parametrize("words", _wrong())
def test_a_wrong_function_is_told_what_to_mend(words: str) -> None:
    with pytest.raises(InvalidHandler, match=words.replace("|", r"\|")) as caught:
        handler("wrong")(_wrong()[words])
    assert "controller: Controller" in caught.value.hint


def test_a_content_type_is_the_formats_to_choose() -> None:
    async def chat(input: Prompt, controller: Controller) -> None: ...

    with pytest.raises(InvalidHandler, match="content type is that of the run's format"):
        handler(content_type="text/html")(chat)


@pytest.mark.parametrize("format", FORMATS)
def test_the_output_has_the_formats_headers_and_the_handlers(format: str) -> None:
    @handler(headers={"X-Mine": "a", "X-Vercel-AI-Data-Stream": "v9", "Connection": "close"})
    async def chat(input: Prompt, controller: Controller) -> None: ...

    output, wire = chat.output(format), FORMATS[format]
    assert (output.format, output.content_type, output.wire) == (format, wire.headers["Content-Type"], wire)
    headers = {name.lower(): value for name, value in output.headers}
    assert headers["x-mine"] == "a"
    assert "connection" not in headers
    assert "content-type" not in headers
    assert headers["x-vercel-ai-data-stream"] == wire.headers.get("x-vercel-ai-data-stream", "v9")
    assert chat.output("").format == "data-stream"


def test_what_a_handler_does_not_serve() -> None:
    @handler()
    async def chat(input: Prompt, controller: Controller) -> None: ...

    @handler()
    async def lines(input: Prompt) -> AsyncIterator[bytes]:
        yield b""

    assert [lines.output(format).format for format in ("", "bytes", "text")] == ["bytes", "bytes", "text"]
    assert chat.output("text").format == "plain-text"
    for one, format in ((chat, "bytes"), (chat, "morse"), (lines, "plain-text"), (lines, "data-stream")):
        with pytest.raises(UnknownFormat):
            one.output(format)


# ---------------------------------------------------------------- the outlet


async def test_drain_gives_the_writer_its_turn_and_waits_while_there_is_too_much() -> None:
    outlet = Outlet(max_bytes=4, max_chunks=1)
    taking = asyncio.create_task(outlet.take())
    await asyncio.sleep(0)
    outlet.push(b"a")
    outlet.push(b"")
    await outlet.drain()
    assert await taking == [b"a"]
    for chunk in (b"aa", b"bb", b"cc"):
        outlet.push(chunk)
    assert outlet.pending == 6
    draining = asyncio.create_task(outlet.drain())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not draining.done()
    assert await outlet.take() == [b"aa", b"bb", b"cc"]
    await draining
    outlet.close()
    outlet.push(b"late")
    assert outlet.pending == 0
    with pytest.raises(OutletClosed):
        await outlet.drain()


# ---------------------------------------------------------------- recite

SCRIPT: list[dict[str, Any]] = [
    {"type": "reasoning", "text": "hm"},
    {"type": "text", "text": "Hello world", "parentId": "p"},
    {"type": "tool-call", "toolName": "f", "toolCallId": "c1", "args": {"b": 1, "a": "ü"}, "result": None},
    {"type": "tool-call", "toolName": "f", "toolCallId": "c2", "argsText": "{ }", "artifact": [1], "isError": True},
    {"type": "tool-call", "toolName": "g"},
    {"type": "source", "id": "s1", "url": "https://example.org/", "title": "A"},
    {"type": "file", "data": "AA==", "mimeType": "image/png"},
    {"type": "data", "name": "n", "data": {"a": None}},
    {"type": "chunk", "chunk": {"type": "annotations", "path": [], "annotations": [1]}},
]


async def test_recite_says_every_part_of_its_script() -> None:
    chunks = await said(recite, {"script": SCRIPT, "chunk": 4, "finish": "length"})
    kinds = [chunk.part.type for chunk in chunks if isinstance(chunk, PartStartChunk)]
    assert kinds == [line["type"] for line in SCRIPT[:-1]]
    assert chunks[0] == StepStartChunk("s")
    assert isinstance(chunks[-2], StepFinishChunk)
    assert isinstance(chunks[-1], MessageFinishChunk)
    assert chunks[-1].finish_reason == "length"
    assert AnnotationsChunk([1]) in chunks
    texts: dict[int, list[str]] = {}
    for chunk in chunks:
        if isinstance(chunk, TextDeltaChunk):
            texts.setdefault(chunk.path[0], []).append(chunk.text_delta)
    assert texts[1] == ["Hell", "o wo", "rld"]
    assert ["".join(texts[index]) for index in (0, 2, 3, 4)] == ["hm", '{"b":1,"a":"ü"}', "{ }", "{}"]
    results = [chunk for chunk in chunks if isinstance(chunk, ResultChunk)]
    assert [(one.path, one.result, one.artifact, one.is_error) for one in results] == [
        ((2,), None, UNDEFINED, False),
        ((3,), None, [1], True),
    ]


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.integers(1, 50))
def test_recite_gives_the_text_back(text: str, chunk: int) -> None:
    script = [{"type": "text", "text": text}]
    chunks = asyncio.run(said(recite, {"script": script, "chunk": chunk, "rate": 0, "finish": None}))
    deltas = [one.text_delta for one in chunks if isinstance(one, TextDeltaChunk)]
    assert "".join(deltas) == text
    assert all(len(delta) <= chunk for delta in deltas)
    assert not any(isinstance(one, StepStartChunk | StepFinishChunk | MessageFinishChunk) for one in chunks)


async def test_recite_raises_what_its_script_says() -> None:
    with pytest.raises(Recital, match="enough"):
        await said(recite, {"script": [{"type": "raise", "message": "enough"}]})


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ({"type": "song"}, ["script", 0]),
        ({"type": "text"}, ["script", 0, "text", "text"]),
        ({"type": "text", "text": "a", "tempo": 1}, ["script", 0, "text", "tempo"]),
        ({"type": "chunk", "chunk": {"type": "text-delta"}}, ["script", 0, "chunk", "chunk"]),
    ],
)
def test_recite_refuses_what_makes_no_sense(line: dict[str, Any], path: list[Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        recite.parse(json.dumps({"script": [line]}).encode())
    assert caught.value.errors[0]["path"][: len(path)] == path
