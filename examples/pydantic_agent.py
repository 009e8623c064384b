"""A pydantic-ai agent as a handler: its text, thinking, tool calls, their results and the usage, as they come.

From this folder::

    pip install pydantic-ai-slim
    tailrace up --handlers pydantic_agent
    tailrace run agent --input '{"prompt": "What is the weather in Bern?"}'

`TestModel` calls every tool once and needs no key; put your model in its place.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, AgentRunResultEvent
from pydantic_ai.messages import (
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_ai.models.test import TestModel
from pydantic_core import to_json, to_jsonable_python

from tailrace.message import DataInit, MessageFinishChunk, StepFinishChunk, StepStartChunk
from tailrace.message.text import TextWriter
from tailrace.message.tool_call import ToolCallWriter, ToolResponse
from tailrace.worker import Controller, Handler, RunContext, handler


class Prompt(BaseModel):
    prompt: str


class AgentWriter:
    """Writes an agent's events with a controller. The agent numbers the parts of each response of its model anew."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._texts: dict[int, TextWriter] = {}
        self._calls: dict[str, ToolCallWriter] = {}
        self._call_at: dict[int, str] = {}

    def write(self, event: object) -> None:
        match event:
            case PartStartEvent(index=index, part=TextPart(content=text)):
                self._texts[index] = self._controller.add_text_part().append(text)
            case PartStartEvent(index=index, part=ThinkingPart(content=text)):
                self._texts[index] = self._controller.add_reasoning_part().append(text)
            case PartStartEvent(index=index, part=ToolCallPart() as call):
                self._call_at[index] = call.tool_call_id
                self._calls[call.tool_call_id] = self._controller.add_tool_call_part(
                    call.tool_name, tool_call_id=call.tool_call_id
                )
                self._arguments(index, call.args)
            case PartDeltaEvent(index=index, delta=TextPartDelta() | ThinkingPartDelta() as delta):
                self._texts[index].append(delta.content_delta or "")
            case PartDeltaEvent(index=index, delta=ToolCallPartDelta(args_delta=text)):
                self._arguments(index, text)
            case PartEndEvent(index=index) if index in self._texts:
                self._texts.pop(index).close()
            case FunctionToolCallEvent(part=call):  # only now the arguments are complete
                self._calls[call.tool_call_id].args.close()
            case FunctionToolResultEvent(part=part):
                failed = part.outcome != "success"
                self._calls[part.tool_call_id].set_response(
                    ToolResponse(to_jsonable_python(part.content), is_error=failed)
                )
            case AgentRunResultEvent(result=result):
                self._end(result)

    def _arguments(self, index: int, args: str | dict[str, Any] | None) -> None:
        if args:
            text = args if isinstance(args, str) else to_json(args).decode()
            self._calls[self._call_at[index]].args.append(text)

    def _end(self, result: Any) -> None:
        for call in self._calls.values():  # those that carried a structured output have no result
            call.close()
        if not isinstance(result.output, str):
            self._controller.append_data(DataInit("output", to_jsonable_python(result.output)))
        tokens = result.usage
        usage = {"inputTokens": tokens.input_tokens, "outputTokens": tokens.output_tokens}
        self._controller.enqueue(StepFinishChunk("stop", usage))
        self._controller.enqueue(MessageFinishChunk("stop", usage))


def answering(agent: Agent[None, Any], name: str = "agent") -> Handler:
    """The handler that lets ``agent`` answer."""

    @handler(name, input=Prompt)
    async def answer(input: Prompt, controller: Controller, run: RunContext) -> None:
        writer = AgentWriter(controller)
        controller.enqueue(StepStartChunk(run.stream_id))
        async with agent.run_stream_events(input.prompt) as events:
            async for event in events:
                writer.write(event)
                await controller.drain()

    return answer


def weather(city: str) -> dict[str, Any]:
    """The weather in a city."""
    return {"city": city, "celsius": 21}


agent = answering(Agent(TestModel(), tools=[weather]))
