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
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel

from tailrace.message import tool
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
    """A chat endpoint that gives one of ``steps``, deltas each, to each request, and the last one again and again."""

    def __init__(self, *steps: list[dict[str, Any]]) -> None:
        self.steps = steps
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
        deltas = self.steps[min(len(self.requests), len(self.steps)) - 1]
        for delta in deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            writer.write(b"data: " + json.dumps(base | {"choices": [choice]}).encode() + b"\n\n")
            await writer.drain()
        calls = any("tool_calls" in delta for delta in deltas)
        last = {"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}
        writer.write(b"data: " + json.dumps(base | {"choices": [last]}).encode() + b"\n\ndata: [DONE]\n\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def call(index: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": f"{name}-{index}", "function": function}]}


def temperatures(*cities: str) -> list[dict[str, Any]]:
    return [call(index, "temperature", json.dumps({"city": city})) for index, city in enumerate(cities)]


ASKED = {"question": "Where is it warmer?", "model": "m"}
Desk = Callable[..., Any]


@pytest.fixture
def desk(serve: Any, example: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Serves the example, whose endpoint is ``model``; ``tools`` take the place of those of their names."""

    async def served(model: Model, **tools: Any) -> Any:
        monkeypatch.setenv("OPENAI_BASE_URL", model.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        module = example("tools")
        module.TOOLS.update(tools)
        return await serve(*load("example_tools"))

    return served


async def test_a_handler_with_tools(desk: Desk, message: Build) -> None:
    first = [{"content": "Let me see."}, *temperatures("Bern", "Oslo", "Atlantis")]
    wrong = [call(0, "add", '{"numbers":["x"]}'), call(1, "fly", "{}")]
    async with Model(first, wrong, [{"content": "Bern."}]) as model:
        service = await desk(model)
        chunks = decoded((await service.run("desk", ASKED, format="assistant-transport")).content)
    answer = message(chunks)
    found = parts(answer)
    assert [part["text"] for part in found if part["type"] == "text"] == ["Let me see.", "Bern."]
    calls = [part for part in found if part["type"] == "tool-call"]
    bern = {"city": "Bern", "celsius": 21}
    assert [(part["result"], part["isError"]) for part in calls[:3]] == [
        (bern, False),
        ({"city": "Oslo", "celsius": 14}, False),
        ("KeyError: 'atlantis'", True),
    ]
    assert calls[3]["isError"]
    assert calls[3]["result"].startswith("Error: Function parameter validation failed. ")
    assert "result" not in calls[4]  # nobody has such a tool
    assert [step.is_continued for step in chunks if isinstance(step, StepFinishChunk)] == [True, True, False]
    assert [step.finish_reason for step in answer.metadata.steps] == ["tool-calls", "tool-calls", "stop"]
    one, two, three = model.requests
    assert [tool["function"]["name"] for tool in one["tools"]] == ["add", "temperature"]
    assert one["tools"][1]["function"] == {
        "name": "temperature",
        "description": "The temperature in a city, in degrees Celsius.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    said = two["messages"]
    assert [each["role"] for each in said] == ["user", "assistant", "tool", "tool", "tool"]
    assert (said[1]["content"], said[1]["tool_calls"][0]["id"]) == ("Let me see.", "temperature-0")
    assert (json.loads(said[2]["content"]), said[4]["content"]) == (bern, "KeyError: 'atlantis'")
    assert three["messages"][:5] == said
    assert [each["role"] for each in three["messages"][5:]] == ["assistant", "tool", "tool"]
    assert three["messages"][6]["content"] == calls[3]["result"]
    assert json.loads(three["messages"][7]["content"]) == {"error": "Tool call was not completed"}


async def test_a_result_is_read_while_another_tool_runs(desk: Desk, message: Build) -> None:
    read = asyncio.Event()

    @tool
    async def temperature(city: str) -> str:
        if city == "Oslo":
            await read.wait()
        return f"fine in {city}"

    async with Model(temperatures("Oslo", "Bern"), [{"content": "Bern."}]) as model:
        service = await desk(model, temperature=temperature)
        body = b""
        run = {"handler": "desk", "input": ASKED, "format": "assistant-transport"}
        async with service.client.stream("POST", "/v1/runs", json=run) as response:
            async for part in response.aiter_bytes():
                body += part
                if b"fine in Bern" in body and not read.is_set():
                    assert b"fine in Oslo" not in body
                    read.set()
    answer = message(decoded(body))
    assert [one.result for one in answer.tool_calls] == ["fine in Oslo", "fine in Bern"]
    finish = [chunk.type for chunk in decoded(body)].index("step-finish")
    assert max(index for index, chunk in enumerate(decoded(body)) if chunk.type == "result") < finish


async def test_a_cancel_of_the_run_cancels_its_tools(desk: Desk) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    @tool
    async def temperature(city: str) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with Model(temperatures("Oslo")) as model:
        service = await desk(model, temperature=temperature)
        await service.accept("desk", ASKED, id="a", format="assistant-transport")
        await started.wait()
        assert (await service.client.post("/v1/runs/a/cancel")).is_success
        await cancelled.wait()
        body, _ = await service.body("a")
    assert (await service.status("a"))["code"] == "cancelled"
    assert b"tool-call-args-text-finish" in body
    assert b'"result"' not in body
    assert len(model.requests) == 1


async def test_a_model_that_never_answers_is_given_up(desk: Desk, message: Build) -> None:
    async with Model(temperatures("Bern")) as model:
        service = await desk(model)
        await service.accept("desk", ASKED, id="a", format="assistant-transport")
        body, _ = await service.body("a")
    assert len(model.requests) == 8
    assert len(message(decoded(body)).tool_calls) == 8
    assert (await service.status("a"))["message"] == "No answer in 8 steps"
