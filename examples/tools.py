"""A handler whose model calls tools: every step's text, calls and results reach the reader as they come.

From this folder, with any OpenAI-compatible endpoint::

    pip install 'tailrace[openai]'
    export OPENAI_BASE_URL=… OPENAI_API_KEY=…
    tailrace up --handlers tools
    tailrace run desk --input '{"question": "Is it warmer in Bern or in Oslo?", "model": "…"}'
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from openai import AsyncOpenAI
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json, to_jsonable_python

from tailrace.message.tool_call import ToolResponse
from tailrace.worker import Controller, Handler, handler
from tailrace.worker.completion import Call, Completion

MAX_STEPS = 8


def temperature(city: str) -> dict[str, Any]:
    """The temperature in a city, in degrees Celsius."""
    celsius = {"bern": 21, "oslo": 14}
    return {"city": city, "celsius": celsius[city.lower()]}


def add(numbers: list[float]) -> float:
    """The sum of numbers."""
    return sum(numbers)


TOOLS: dict[str, Any] = {"temperature": temperature, "add": add}
# of a function: validates the arguments, and calls it with them
ADAPTERS = {name: TypeAdapter[Any](tool) for name, tool in TOOLS.items()}
DESCRIPTIONS = [
    {
        "type": "function",
        "function": {"name": name, "description": tool.__doc__, "parameters": ADAPTERS[name].json_schema()},
    }
    for name, tool in TOOLS.items()
]


class Question(BaseModel):
    question: str
    model: str


def respond(call: Call) -> ToolResponse:
    """Run the tool. What goes wrong is the model's to read: it may try again."""
    try:
        return ToolResponse(to_jsonable_python(ADAPTERS[call.name].validate_json(call.arguments or "{}")))
    except ValidationError as error:
        return ToolResponse(f"Wrong arguments: {error}", is_error=True)
    except KeyError as error:
        return ToolResponse(f"Unknown: {error}", is_error=True)


def answering(client: Callable[[], AsyncOpenAI] = AsyncOpenAI) -> Handler:
    """The handler, on what ``client`` connects to."""

    @handler("desk", input=Question)
    async def desk(input: Question, controller: Controller) -> None:
        messages: list[Any] = [{"role": "user", "content": input.question}]
        async with client() as endpoint:
            for _ in range(MAX_STEPS):
                completion = await _step(endpoint, input.model, messages, controller)
                responses = await asyncio.gather(*(asyncio.to_thread(respond, call) for call in completion.calls))
                for call, response in zip(completion.calls, responses, strict=True):
                    if call.writer is not None:
                        call.writer.set_response(response)
                completion.finish(message=not responses)
                if not responses:
                    return
                messages += _said(completion, responses)
        raise RuntimeError(f"No answer in {MAX_STEPS} steps")

    return desk


async def _step(endpoint: AsyncOpenAI, model: str, messages: list[Any], controller: Controller) -> Completion:
    completion = Completion(controller)
    tools: Any = DESCRIPTIONS
    stream = await endpoint.chat.completions.create(
        model=model, messages=messages, tools=tools, stream=True, stream_options={"include_usage": True}
    )
    async with stream:
        async for part in stream:
            completion.feed(part)
            await controller.drain()
    return completion


def _said(completion: Completion, responses: list[ToolResponse]) -> list[dict[str, Any]]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in completion.calls
    ]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": to_json(response.result).decode()}
        for call, response in zip(completion.calls, responses, strict=True)
    ]
    return [{"role": "assistant", "content": completion.text or None, "tool_calls": calls}, *results]


desk = answering()
