"""The openai handler against a server that speaks the streaming protocol, through a worker and a gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest

from tailrace.message.chunks import (
    Chunk,
    MessageFinishChunk,
    PartFinishChunk,
    StepFinishChunk,
    StepStartChunk,
    ToolCallInit,
)
from tailrace.message.message import Message
from tailrace.wire import find_format
from tailrace.worker.builtin import openai

Build = Callable[[Iterable[Chunk]], Message]
Delta = dict[str, Any]
MESSAGES = [{"role": "user", "content": "hi"}]
FAULT = b'{"error": {"message": "no such model", "code": "model_not_found"}}'


class ChatServer:
    """Answers with ``deltas``, one part each, then the finish reason, then the usage if it was asked for."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.deltas: list[Delta] = [{"role": "assistant", "content": ""}, *words("Hel", "lo, ", "wörld")]
        self.reason: str | None = "stop"
        self.breaks = False
        self.url = ""

    async def __aenter__(self) -> ChatServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        request = json.loads(await reader.readexactly(length))
        self.requests.append((head, request))
        if request["model"] == "broken":
            reply = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nconnection: close\r\n"
            writer.write(reply + b"content-length: %d\r\n\r\n" % len(FAULT) + FAULT)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for part in self._parts(request):
                writer.write(b"data: " + part + b"\n\n")
                await writer.drain()
        writer.close()
        await writer.wait_closed()

    def _parts(self, request: dict[str, Any]) -> Iterable[bytes]:
        base = {"id": "completion-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        for delta in self.deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            other = {"index": 1, "delta": {"content": "another choice"}, "finish_reason": "length"}
            yield json.dumps(base | {"choices": [choice, other]}).encode()
        if self.breaks:
            yield b'{"error": {"message": "overloaded", "code": 529}}'
            return
        if self.reason is not None:
            last = {"index": 0, "delta": {}, "finish_reason": self.reason}
            yield json.dumps(base | {"choices": [last]}).encode()
        if (request.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            yield json.dumps(base | {"choices": [], "usage": usage}).encode()
        yield b"[DONE]"


def words(*texts: str, key: str = "content") -> list[Delta]:
    return [{key: text} for text in texts]


def call(index: int | None, arguments: str | None = None, id: str | None = None, name: str | None = None) -> Delta:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    found: dict[str, Any] = {"index": index, "id": id, "function": function}
    return {"tool_calls": [{key: value for key, value in found.items() if value is not None}]}


@pytest.fixture
async def chat() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


async def chunks_of(serve: Any, chat: ChatServer, **input: Any) -> list[Chunk]:
    service = await serve(openai(chat.url, model="small"))
    response = await service.run("openai", {"messages": MESSAGES, **input}, format="assistant-transport")
    decoder = find_format("assistant-transport").decoder()
    return [*decoder.feed(response.content), *decoder.close()]


async def test_as_text_it_is_the_text_alone(serve: Any, chat: ChatServer) -> None:
    chat.deltas[1:1] = words("I think", key="reasoning_content")
    service = await serve(openai(chat.url, "secret", "small"))
    input = {"messages": MESSAGES, "temperature": 0.5, "top_k": 3, "stream": False}
    response = await service.run("openai", input, format="text")
    assert (response.text, response.headers["content-type"]) == ("Hello, wörld", "text/plain; charset=utf-8")
    (head, request), *_ = chat.requests
    assert "authorization: bearer secret" in head
    assert request == {
        "model": "small",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_k": 3,
    }


async def test_it_streams_text_usage_and_finish_reason(serve: Any, chat: ChatServer, message: Build) -> None:
    chunks = await chunks_of(serve, chat)
    usage = {"inputTokens": 7, "outputTokens": 3}
    assert chunks[0] == StepStartChunk("completion-1")
    assert chunks[-3:] == [PartFinishChunk((0,)), StepFinishChunk("stop", usage), MessageFinishChunk("stop", usage)]
    (part,) = message(chunks).parts
    assert (part.type, part.to_json()["text"]) == ("text", "Hello, wörld")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
async def test_reasoning_under_either_name(serve: Any, chat: ChatServer, message: Build, key: str) -> None:
    chat.deltas = [*words("hm ", "hm", key=key), {"content": None, key: None}, *words("So.", "")]
    chat.deltas += [{"refusal": " No."}]
    parts = message(await chunks_of(serve, chat)).parts
    assert [(part.type, part.to_json()["text"]) for part in parts] == [("reasoning", "hm hm"), ("text", "So. No.")]


async def test_tool_calls_that_come_interleaved(serve: Any, chat: ChatServer, message: Build) -> None:
    chat.deltas = [
        *words("Let me see."),
        call(0, "", "c1", "weather"),
        call(1, '{"ci', "c2", "weather"),
        call(0, '{"city":'),
        call(1, 'ty":"Oslo"}'),
        call(0, '"Bern"}'),
        call(2, None, "c3", "now"),
    ]
    chat.reason = "tool_calls"
    found = message(await chunks_of(serve, chat))
    calls = [part.to_json() for part in found.parts if part.type == "tool-call"]
    assert [(one["toolCallId"], one["toolName"], one["argsText"]) for one in calls] == [
        ("c1", "weather", '{"city":"Bern"}'),
        ("c2", "weather", '{"city":"Oslo"}'),
        ("c3", "now", "{}"),
    ]
    assert (found.status.type, found.status.reason) == ("requires-action", "tool-calls")


@pytest.mark.parametrize("index", [0, None])
async def test_another_id_at_the_same_index_is_another_call(
    serve: Any, chat: ChatServer, message: Build, index: int | None
) -> None:
    chat.deltas = [call(index, '{"a":', "c1", "f"), call(index, "1}"), call(index, '{"a":2}', "c2", "f")]
    chunks = await chunks_of(serve, chat)
    calls = [part.to_json() for part in message(chunks).parts]
    assert [(one["toolCallId"], one["argsText"]) for one in calls] == [("c1", '{"a":1}'), ("c2", '{"a":2}')]


async def test_a_call_without_an_id_gets_one_and_a_late_name_loses_nothing(
    serve: Any, chat: ChatServer, message: Build
) -> None:
    chat.deltas = [call(0, '{"a"'), call(0, ":1", None, "f"), call(0, "}")]
    (part,) = message(await chunks_of(serve, chat)).parts
    assert isinstance(part.to_json()["toolCallId"], str)
    assert len(part.to_json()["toolCallId"]) == 7
    assert part.to_json()["argsText"] == '{"a":1}'


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("length", "length"), ("content_filter", "content-filter"), ("eos", "other"), (None, "unknown")],
)
async def test_finish_reasons(serve: Any, chat: ChatServer, theirs: str | None, ours: str) -> None:
    chat.reason = theirs
    last = (await chunks_of(serve, chat, stream_options=None))[-1]
    assert last == MessageFinishChunk(ours, {"inputTokens": 0, "outputTokens": 0})  # type: ignore[arg-type]
    assert "stream_options" not in chat.requests[0][1]


async def test_the_runs_own_stream_options_win(serve: Any, chat: ChatServer) -> None:
    await chunks_of(serve, chat, stream_options={"include_usage": False})
    assert chat.requests[0][1]["stream_options"] == {"include_usage": False}


async def test_what_goes_wrong_is_the_runs_error(serve: Any, chat: ChatServer) -> None:
    service = await serve(openai(chat.url))
    await service.accept("openai", {"messages": MESSAGES, "model": "broken"}, id="a")
    assert b"no such model" in (await service.body("a"))[0]
    info = await service.status("a")
    assert info["code"] == "handler-error"
    assert "no such model" in info["message"]

    chat.breaks = True
    await service.accept("openai", {"messages": MESSAGES, "model": "m"}, id="b")
    body = (await service.body("b"))[0]
    assert b'0:"lo, "' in body
    assert body.splitlines()[-1].startswith(b"3:")
    assert "overloaded" in (await service.status("b"))["message"]

    await service.accept("openai", {"messages": MESSAGES}, id="c")
    await service.body("c")
    assert "No model" in (await service.status("c"))["message"]
    assert (await service.run("openai", {"messages": []})).json()["code"] == "invalid-input"


async def test_a_tool_call_streams_before_it_is_complete(serve: Any, chat: ChatServer) -> None:
    chat.deltas = [call(0, '{"a', "c1", "f"), call(0, '":1}')]
    kinds = [chunk.part for chunk in await chunks_of(serve, chat) if chunk.type == "part-start"]
    assert kinds == [ToolCallInit("f", "c1")]
