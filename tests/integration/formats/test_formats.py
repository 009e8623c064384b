"""A controller's answer in every format: live, resumed half way, at another gateway, and however it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from tailrace.message.chunks import (
    AnnotationsChunk,
    Chunk,
    DataInit,
    ErrorChunk,
    MessageFinishChunk,
    PartFinishChunk,
    SourceInit,
    StepFinishChunk,
    StepStartChunk,
    UpdateStateChunk,
)
from tailrace.message.dialect import LEGACY, NEWEST
from tailrace.message.message import Message, TextPart, ToolCallPart
from tailrace.message.tool_call import ToolResponse
from tailrace.wire import FORMATS, find_format
from tailrace.worker import Controller, Pace, RunContext, handler

Build = Callable[[Iterable[Chunk]], Message]
USAGE = {"inputTokens": 3, "outputTokens": 5}
WORDS = "Käse 𝄞  zwölf\nlines"


class Nothing(BaseModel):
    pass


class Halves:
    """An answer with everything in it, which waits in the middle until it is let on."""

    def __init__(self) -> None:
        self.half = asyncio.Event()
        self.open = asyncio.Event()
        self.seen: list[RunContext] = []

        @handler("halves", headers={"x-kind": "halves"})
        async def halves(input: Nothing, run: RunContext, controller: Controller) -> None:
            self.seen.append(run)
            await self.write(controller, plain=run.format.startswith("plain-text"))

        self.handler = halves

    async def write(self, controller: Controller, *, plain: bool) -> None:
        controller.enqueue(StepStartChunk("step-1"))
        if not plain:
            controller.append_reasoning("hm, ")
            await controller.drain()
        controller.append_text(WORDS)
        if not plain:
            with controller.add_tool_call_part("weather", tool_call_id="c1") as call:
                call.args.append('{"city":').append('"Bern"}').close()
                await controller.drain()
                call.set_response(ToolResponse({"celsius": 20.5, "at": None}, artifact=[1]))
            controller.append_source(SourceInit("s1", "https://example.org/", "A page"))
            controller.append_data(DataInit("mood", {"good": True}))
        controller.append_text("half" * 50)
        await controller.drain()
        self.half.set()
        await self.open.wait()
        controller.append_text("whole" * 50)
        controller.enqueue(StepFinishChunk("stop", dict(USAGE)))
        controller.enqueue(MessageFinishChunk("stop", dict(USAGE)))

    async def chunks(self, format: str) -> list[Chunk]:
        """What it writes, without a worker."""
        chunks: list[Chunk] = []
        controller = Controller(chunks.append, dialect=LEGACY if format.endswith(LEGACY) else NEWEST)
        self.open.set()
        await self.write(controller, plain=format.startswith("plain-text"))
        controller.finish()
        return chunks


def encoded(format: str, chunks: Iterable[Chunk]) -> bytes:
    encoder = find_format(format).encoder()
    return b"".join([*map(encoder.encode, chunks), encoder.finish()])


def decoded(format: str, body: bytes) -> list[Chunk]:
    decoder = find_format(format).decoder()
    return [*decoder.feed(body), *decoder.close()]


def frames(body: bytes) -> list[Any]:
    """The JSON of server-sent events, and the word that ends them."""
    data = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]
    return [event if event == "[DONE]" else json.loads(event) for event in data]


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 422, response.text
    found: dict[str, Any] = response.json()
    assert found["code"] == "unknown-format"
    return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


# ---------------------------------------------------------------- the ordinary way


@pytest.mark.parametrize(
    ("kind", "format"), [("memory", format) for format in FORMATS] + [("jetstream", "ui-message-stream")]
)
async def test_a_format_is_served_live_and_resumed_half_way_at_another_gateway(
    serve: Any, message: Build, format: str
) -> None:
    halves = Halves()
    service = await serve(halves.handler)
    run = {"handler": "halves", "input": {}, "id": "a", "format": format}
    async with service.client.stream("POST", "/v1/runs", json=run) as live:
        assert live.status_code == 200
        parts, first = live.aiter_raw(), b""
        while b"half" * 50 not in first:
            first += await anext(parts)
        life, half = live.headers["tailrace-incarnation"], len(first) // 2
        query = {"offset": half, "incarnation": life}
        async with service.other.stream("GET", "/v1/runs/a", params=query) as resumed:
            rest = b""
            again = resumed.aiter_raw()
            while half + len(rest) < len(first):
                rest += await anext(again)
            halves.open.set()
            whole = first + b"".join([part async for part in parts])
            rest += b"".join([part async for part in again])
    chunks = await Halves().chunks(format)
    assert whole == encoded(format, chunks)
    assert whole[half:] == rest
    wire = find_format(format)
    for response in (live, resumed, await service.other.get("/v1/runs/a")):
        assert response.headers["content-type"] == wire.headers["Content-Type"]
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-kind"] == "halves"
        marks = {name.lower(): value for name, value in wire.headers.items() if name.startswith("x-vercel")}
        assert {name: response.headers.get(name) for name in marks} == marks
    assert response.content == whole
    assert response.headers["content-length"] == str(len(whole))
    assert (halves.seen[0].format, halves.seen[0].content_type) == (format, wire.headers["Content-Type"])
    read, written = message(decoded(format, whole)), message(chunks)
    assert _text(read) == _text(written)
    if not format.startswith("plain-text"):
        assert [_call(part) for part in _calls(read)] == [_call(part) for part in _calls(written)]
    if format == "assistant-transport":
        assert read == written
    assert (await service.status("a"))["status"] == "done"


def _text(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def _calls(message: Message) -> list[ToolCallPart]:
    return [part for part in message.parts if isinstance(part, ToolCallPart)]


def _call(part: ToolCallPart) -> tuple[object, ...]:
    return (part.tool_call_id, part.tool_name, part.args_text, part.args, part.result)


async def test_the_data_stream_is_the_format_of_a_run_that_asks_for_none(serve: Any) -> None:
    halves = Halves()
    halves.open.set()
    service = await serve(halves.handler)
    bodies = [(await service.run("halves", **more)).content for more in ({}, {"format": "data-stream"})]
    assert bodies == [encoded("data-stream", await halves.chunks("data-stream"))] * 2
    assert [run.format for run in halves.seen] == ["data-stream"] * 2


async def test_a_format_has_one_name_under_which_requests_join(serve: Any) -> None:
    halves = Halves()
    halves.open.set()
    service = await serve(halves.handler)
    names = ("data-stream", "data-stream;v=0.3.44", "data-stream; v=0.3.44")
    assert len({(await service.run("halves", id="a", format=name)).content for name in names}) == 1
    assert len(halves.seen) == 1
    conflict = await service.run("halves", id="a", format="data-stream;v=0.3.15")
    assert (conflict.status_code, conflict.json()["code"]) == (409, "run-conflict")


@pytest.mark.parametrize("format", ["data-stream", "assistant-transport"])
async def test_as_events_each_entry_is_one_and_all_together_are_the_bytes(serve: Any, format: str) -> None:
    halves = Halves()
    halves.open.set()
    service = await serve(halves.handler)
    await service.run("halves", id="a", format=format)
    events = (await service.other.get("/v1/runs/a", params={"frame": "sse"})).text.split("\n\n")
    found = b""
    for event in events:
        lines = [line for line in event.split("\n") if line]
        if lines and not any(line.startswith("event:") for line in lines):
            found += "\n".join(line.removeprefix("data: ") for line in lines if line.startswith("data:")).encode()
    assert found == encoded(format, await halves.chunks(format))
    assert "event: end" in events[-2]


async def test_a_frame_larger_than_a_chunk_is_split_and_many_small_ones_are_joined(serve: Any) -> None:
    @handler("sizes", input=Nothing)
    async def sizes(input: Nothing, controller: Controller) -> None:
        for number in range(500):  # no await between them
            controller.append_text(f"{number} ")
        await controller.drain()
        controller.append_text("ü" * 5000)

    service = await serve(sizes, max_chunk_bytes=1000)
    body = (await service.run("sizes", id="a")).content
    assert "".join(json.loads(line[2:]) for line in body.decode().splitlines()) == (
        "".join(f"{number} " for number in range(500)) + "ü" * 5000
    )
    entries = [entry async for entry in service.store.read("a")]
    assert all(len(entry.chunk) <= 1000 for entry in entries)
    assert len(entries) < 30
    assert all(entry.chunk.decode() for entry in entries), "text is cut between characters"


# ---------------------------------------------------------------- endings


@handler("raises", input=Nothing)
async def raises(input: Nothing, controller: Controller) -> None:
    controller.append_text("before")
    controller.add_tool_call_part("open", tool_call_id="c1").args.append('{"a":1')
    raise ValueError("no such thing")


@pytest.mark.parametrize("format", FORMATS)
async def test_an_exception_is_the_error_chunk_and_the_ending(serve: Any, message: Build, format: str) -> None:
    service = await serve(raises)
    await service.accept("raises", id="a", format=format)
    body, _ = await service.body("a")
    info = await service.status("a")
    assert info["status"] == "error"
    assert (info["code"], info["message"]) == ("handler-error", "no such thing")
    if format.startswith("plain-text"):
        assert body.startswith(b"before")
        return
    chunks = decoded(format, body)
    (error,) = [chunk for chunk in chunks if isinstance(chunk, ErrorChunk)]
    assert error.error == "ValueError: no such thing"
    assert message(chunks).status.reason == "error"
    if find_format(format).headers["Content-Type"].startswith("text/event-stream"):
        assert frames(body)[-1] == "[DONE]"


@pytest.mark.parametrize("kind", ["memory", "jetstream"])
@pytest.mark.parametrize("ignored", [False, True], ids=["heeded", "ignored"])
async def test_a_cancel_writes_the_abort_frame_behind_closed_parts(serve: Any, ignored: bool) -> None:
    begun = asyncio.Event()
    let_go = asyncio.Event()

    @handler("talks", input=Nothing)
    async def talks(input: Nothing, controller: Controller) -> None:
        controller.append_text("and ")
        begun.set()
        while ignored and not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                pass
        if ignored:
            return
        try:
            await asyncio.Event().wait()
        finally:
            controller.append_text("so on")

    service = await serve(talks)
    await service.accept("talks", id="a", format="ui-message-stream")
    await begun.wait()
    assert (await service.other.post("/v1/runs/a/cancel")).status_code == 202
    body, headers = await service.body("a")
    let_go.set()
    *said, end, abort, done = frames(body)
    assert [frame.get("delta") for frame in said][1:] == (["and "] if ignored else ["and ", "so on"])
    assert (end, abort, done) == ({"type": "text-end", "id": "0"}, {"type": "abort"}, "[DONE]")
    assert headers["x-vercel-ai-ui-message-stream"] == "v1"
    info = await service.status("a")
    assert (info["status"], info["code"]) == ("cancelled", "cancelled")


async def test_a_format_without_an_abort_frame_lacks_its_end_after_a_cancel(serve: Any) -> None:
    halves = Halves()
    service = await serve(halves.handler)
    await service.accept("halves", id="a", format="assistant-transport")
    await halves.half.wait()
    await service.client.post("/v1/runs/a/cancel")
    body, _ = await service.body("a")
    chunks = [chunk for part in (body,) for chunk in find_format("assistant-transport").decoder().feed(part)]
    assert isinstance(chunks[-1], PartFinishChunk)
    assert "[DONE]" not in body.decode()
    assert (await service.status("a"))["status"] == "cancelled"


async def test_a_run_that_is_cancelled_before_its_first_step_has_its_frame_too(serve: Any) -> None:
    halves = Halves()
    service = await serve(halves.handler)
    began = asyncio.create_task(service.accept("halves", id="a", format="ui-message-stream"))
    await until(lambda: service.worker.runner.cancel("a"))
    await began
    body, _ = await service.body("a")
    assert frames(body)[-2:] == [{"type": "abort"}, "[DONE]"]
    assert (await service.status("a"))["status"] == "cancelled"


async def test_a_stopped_worker_says_so_in_the_format(serve: Any) -> None:
    halves = Halves()
    service = await serve(halves.handler)
    await service.accept("halves", id="a", format="data-stream")
    await halves.half.wait()
    await service.worker.drain(0)
    body, _ = await service.body("a")
    (error,) = [chunk for chunk in decoded("data-stream", body) if isinstance(chunk, ErrorChunk)]
    info = await service.status("a")
    assert (info["code"], info["message"]) == ("worker-stopped", error.error)


async def test_parts_that_are_left_open_are_closed(serve: Any, message: Build) -> None:
    @handler("leaves", input=Nothing)
    async def leaves(input: Nothing, controller: Controller) -> None:
        one, two = controller.add_text_part(), controller.add_reasoning_part()
        one.append("a")
        two.append("b")
        controller.add_tool_call_part("t", tool_call_id="c").args.append("{}")

    service = await serve(leaves)
    chunks = decoded("assistant-transport", (await service.run("leaves", format="assistant-transport")).content)
    assert [chunk.path for chunk in chunks if isinstance(chunk, PartFinishChunk)] == [(0,), (1,), (2,)]
    assert [part.type for part in message(chunks).parts] == ["text", "reasoning", "tool-call"]


async def test_what_a_format_cannot_carry_ends_the_run_with_its_words(serve: Any) -> None:
    @handler("nested", input=Nothing)
    async def nested(input: Nothing, controller: Controller) -> None:
        controller.append_text("so far")
        controller.enqueue(AnnotationsChunk([1]))

    @handler("unended", input=Nothing)
    async def unended(input: Nothing, controller: Controller) -> None:
        controller.append_text("so far")
        controller.add_tool_call_part("t")  # refused when it is closed, behind the handler's end

    service = await serve(nested, unended)
    for name, code in (("nested", "handler-error"), ("unended", "unsupported-chunk")):
        await service.accept(name, id=name, format="plain-text;v=0.3.15")
        assert (await service.body(name))[0].startswith(b"so far")
        info = await service.status(name)
        assert (info["status"], info["code"]) == ("error", code)
        assert info["message"].startswith("unsupported chunk type: ")


# ---------------------------------------------------------------- back-pressure


async def test_drain_holds_a_fast_handler_back(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    @handler("flood", input=Nothing)
    async def flood(input: Nothing, controller: Controller) -> None:
        nonlocal written
        for _ in range(400):
            controller.append_text("x" * 100)
            written += 100
            await controller.drain()

    service = await serve(flood, pace=Pace(pending_bytes=1000, max_pending_bytes=2000, stop_timeout=0.2))
    extend, stored = service.store.extend, asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        await stored.wait()
        return await extend(*arguments)

    monkeypatch.setattr(service.store, "extend", slow)
    await service.accept("flood", id="a", format="text")
    await until(lambda: written >= 1000)
    for _ in range(50):
        await asyncio.sleep(0)
    assert written <= 2200, "one batch is under way, one more is pending"
    stored.set()
    assert (await service.body("a"))[0] == b"x" * 40_000


@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
async def test_who_never_drains_is_refused_before_memory_is_gone(serve: Any, swallowed: bool) -> None:
    @handler("hog", input=Nothing)
    async def hog(input: Nothing, controller: Controller) -> None:
        for _ in range(1000):
            try:
                controller.append_text("x" * 100)
            except Exception:
                if not swallowed:
                    raise

    service = await serve(hog, pace=Pace(max_pending_bytes=5000, stop_timeout=0.2))
    await service.accept("hog", id="a")
    body, _ = await service.body("a")
    info = await service.status("a")
    assert (info["status"], info["code"]) == ("error", "too-much-pending")
    assert 5000 < len(body) < 6000
    (error,) = [chunk for chunk in decoded("data-stream", body) if isinstance(chunk, ErrorChunk)]
    assert error.error == info["message"]


# ---------------------------------------------------------------- formats that are refused


@handler("lines")
async def lines(input: Nothing) -> AsyncIterator[str]:
    yield "one\n"


async def test_an_unknown_format_lists_the_known_ones(serve: Any) -> None:
    service = await serve(lines)
    for name in ("morse", "data-stream;v=9", "text;v=1", ""):
        assert problem(await service.run("lines", format=name))["known"] == [
            *("bytes", "text", *FORMATS),
            *("object-stream", "object-stream;v=0.3.15"),
        ]


async def test_a_handler_serves_its_own_kind_and_the_id_of_a_refused_run_is_free(serve: Any) -> None:
    halves = Halves()
    halves.open.set()
    service = await serve(lines, halves.handler)
    told = problem(await service.run("lines", id="a", format="data-stream"))
    assert told["detail"] == "The handler lines does not write data-stream; it writes bytes, text"
    assert (await service.run("lines", id="a", format="text")).content == b"one\n"
    told = problem(await service.run("halves", id="b", format="bytes"))
    assert "data-stream" in told["detail"]
    assert halves.seen == []
    assert WORDS.encode() in (await service.run("halves", id="b", format="text")).content
    assert [run.format for run in halves.seen] == ["plain-text"]


async def test_state_and_children_pass(serve: Any, message: Build) -> None:
    @handler("family", input=Nothing)
    async def family(input: Nothing, controller: Controller) -> None:
        child = controller.with_parent_id("p1")
        child.append_text("of p1")
        await child.drain()
        controller.enqueue(UpdateStateChunk([{"type": "set", "path": ["a"], "value": [1]}]))

    service = await serve(family)
    for format, parent in (
        ("data-stream", "p1"),
        ("assistant-transport;v=0.3.15", None),
    ):  # the older dialect knows none here
        found = message(decoded(format, (await service.run("family", format=format)).content))
        assert [part.to_json().get("parentId") for part in found.parts] == [parent]
        assert found.metadata.unstable_state == {"a": [1]}
