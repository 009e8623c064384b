"""A handler whose model calls tools: every step's text, calls and results reach the reader as they come.

From this folder, with any OpenAI-compatible endpoint::

    pip install 'tailrace[openai]'
    export OPENAI_BASE_URL=… OPENAI_API_KEY=…
    tailrace up --handlers tools
    tailrace run desk --input '{"question": "Is it warmer in Bern or in Oslo?", "model": "…"}'

What a tool raises is the model's to read: it may try again. A cancel of the run cancels the tools that run.
"""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI
from pydantic import BaseModel

from tailrace.message import by_name, to_openai_messages, to_openai_tools, tool, tool_result_stream
from tailrace.worker import Controller, handler
from tailrace.worker.completion import Completion

MAX_STEPS = 8


@tool
async def temperature(city: str) -> dict[str, Any]:
    """The temperature in a city, in degrees Celsius."""
    celsius = {"bern": 21, "oslo": 14}
    return {"city": city, "celsius": celsius[city.lower()]}


@tool
def add(numbers: list[float]) -> float:
    """The sum of numbers."""
    return sum(numbers)


TOOLS = by_name(temperature, add)


class Question(BaseModel):
    question: str
    model: str


@handler()
async def desk(input: Question, controller: Controller) -> None:
    messages: list[Any] = [{"role": "user", "content": input.question}]
    async with AsyncOpenAI() as endpoint:
        for _ in range(MAX_STEPS):
            stream = await endpoint.chat.completions.create(
                model=input.model,
                messages=messages,
                tools=to_openai_tools(TOOLS),
                stream=True,
                stream_options={"include_usage": True},
            )
            completion = Completion()
            step = await controller.accumulate(tool_result_stream(completion.chunks(stream), TOOLS))
            completion.finish(controller, message=not step.tool_calls)
            if not step.tool_calls:
                return
            messages += to_openai_messages([step])
    raise RuntimeError(f"No answer in {MAX_STEPS} steps")
