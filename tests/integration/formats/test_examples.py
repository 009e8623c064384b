"""The examples, each end to end: a worker with the example's handler, a gateway, and what a reader makes of it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel

from tailrace.message.chunks import Chunk, StepFinishChunk
from tailrace.message.message import Message
from tailrace.wire import find_format
from tailrace.worker import load

Build = Callable[[Iterable[Chunk]], Message]
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Iterator[Callable[[str], ModuleType]]:
    names: list[str] = []

    def loaded(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        names.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield loaded
    for name in names:
        del sys.modules[name]


def decoded(body: bytes) -> list[Chunk]:
    decoder = find_format("assistant-transport").decoder()
    return [*decoder.feed(body), *decoder.close()]


def parts(message: Message) -> list[dict[str, Any]]:
    kept = ("type", "text", "toolName", "toolCallId", "argsText", "result", "isError", "name", "data")
    return [{key: value for key, value in part.to_json().items() if key in kept} for part in message.parts]


# ---------------------------------------------------------------- pydantic-ai


async def thinker(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
    """Thinks, says something, calls two tools at once, and tries the wrong one again; then it answers."""
    if len(messages) == 1:
        yield {0: DeltaThinkingPart(content="Which ")}
        yield {0: DeltaThinkingPart(content="city?")}
        yield "Let me "
        yield "look."
        yield {1: DeltaToolCall(name="weather", json_args='{"ci', tool_call_id="c1")}
        yield {2: DeltaToolCall(name="weather", json_args='{"city":', tool_call_id="c2")}
        yield {1: DeltaToolCall(json_args='ty":"Bern"}')}
        yield {2: DeltaToolCall(json_args='"Atlantis"}')}
    else:
        yield "Fine "
        yield "in Bern."


def weather(city: str) -> dict[str, Any]:
    if city == "Atlantis":
        raise ModelRetry("It sank")
    return {"city": city, "celsius": 21}


async def test_a_pydantic_ai_agent(serve: Any, message: Build, example: Any) -> None:
    agent = Agent(FunctionModel(stream_function=thinker), tools=[weather])
    service = await serve(example("pydantic_agent").answering(agent))
    response = await service.run("agent", {"prompt": "How is it?"}, format="assistant-transport")
    found = message(decoded(response.content))
    assert parts(found) == [
        {"type": "reasoning", "text": "Which city?"},
        {"type": "text", "text": "Let me look."},
        {
            "type": "tool-call",
            "toolName": "weather",
            "toolCallId": "c1",
            "argsText": '{"city":"Bern"}',
            "result": {"city": "Bern", "celsius": 21},
            "isError": False,
        },
        {
            "type": "tool-call",
            "toolName": "weather",
            "toolCallId": "c2",
            "argsText": '{"city":"Atlantis"}',
            "result": "It sank",
            "isError": True,
        },
        {"type": "text", "text": "Fine in Bern."},
    ]
    assert found.status.type == "complete"
    (step,) = found.metadata.steps
    assert step.usage["outputTokens"] > 0


class City(BaseModel):
    name: str


async def test_an_agent_with_structured_output(serve: Any, message: Build, example: Any) -> None:
    async def structured(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args='{"name":"Bern"}', tool_call_id="o1")}

    agent: Any = Agent(FunctionModel(stream_function=structured), output_type=City)
    service = await serve(example("pydantic_agent").answering(agent))
    response = await service.run("agent", {"prompt": "Which?"}, format="assistant-transport")
    assert parts(message(decoded(response.content)))[-1] == {"type": "data", "name": "output", "data": {"name": "Bern"}}


async def test_the_agent_of_the_example_itself(serve: Any, message: Build, example: Any) -> None:
    example("pydantic_agent")
    (handler,) = load("example_pydantic_agent")
    service = await serve(handler)
    response = await service.run("agent", {"prompt": "How is it?"}, format="text")
    assert json.loads(response.text) == {"weather": {"city": "a", "celsius": 21}}


# ---------------------------------------------------------------- tools


class Model:
    """A chat endpoint that calls two tools, then adds with a wrong argument, and then answers with what it was told."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.url = ""

    async def __aenter__(self) -> Model:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        self.requests.append(json.loads(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        base = {"id": f"c{len(self.requests)}", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        for delta in self._deltas():
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            writer.write(b"data: " + json.dumps(base | {"choices": [choice]}).encode() + b"\n\n")
            await writer.drain()
        last = {"index": 0, "delta": {}, "finish_reason": "stop" if len(self.requests) == 3 else "tool_calls"}
        writer.write(b"data: " + json.dumps(base | {"choices": [last]}).encode() + b"\n\ndata: [DONE]\n\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def _deltas(self) -> list[dict[str, Any]]:
        def call(index: int, name: str, arguments: str) -> dict[str, Any]:
            function = {"name": name, "arguments": arguments}
            return {"tool_calls": [{"index": index, "id": f"{name}-{index}", "function": function}]}

        match len(self.requests):
            case 1:
                cities = [call(index, "temperature", f'{{"city":"{name}"}}') for index, name in enumerate(CITIES)]
                return [{"content": "Let me see."}, *cities]
            case 2:
                return [call(0, "add", '{"numbers":["x"]}')]
            case _:
                return [{"content": "Bern."}]


CITIES = ("Bern", "Oslo", "Atlantis")


async def test_a_handler_with_tools(serve: Any, message: Build, example: Any) -> None:
    async with Model() as model:
        tools = example("tools")
        service = await serve(tools.answering(lambda: AsyncOpenAI(base_url=model.url, api_key="none")))
        input = {"question": "Where is it warmer?", "model": "m"}
        chunks = decoded((await service.run("desk", input, format="assistant-transport")).content)
    found = parts(message(chunks))
    assert [part["text"] for part in found if part["type"] == "text"] == ["Let me see.", "Bern."]
    results = [(part["result"], part["isError"]) for part in found if part["type"] == "tool-call"]
    assert results[:3] == [
        ({"city": "Bern", "celsius": 21}, False),
        ({"city": "Oslo", "celsius": 14}, False),
        ("Unknown: 'atlantis'", True),
    ]
    assert results[3][0].startswith("Wrong arguments: ")
    assert [step.is_continued for step in chunks if isinstance(step, StepFinishChunk)] == [True, True, False]
    first, second, third = model.requests
    assert [tool["function"]["name"] for tool in first["tools"]] == ["temperature", "add"]
    assert first["tools"][0]["function"]["parameters"]["required"] == ["city"]
    assert [one["role"] for one in second["messages"]] == ["user", "assistant", "tool", "tool", "tool"]
    assert json.loads(second["messages"][2]["content"]) == {"city": "Bern", "celsius": 21}
    assert len(third["messages"]) == 7
