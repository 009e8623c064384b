"""A streamed chat completion into an answer: text, reasoning, tool calls, usage and how it finished.

Theory: the endpoint sends deltas of one choice. Text and reasoning go on with the part that is open; a tool call is
addressed by its index, comes with its name and id at first and then in pieces of its arguments, and several may come
interleaved. Usage stands in a last part without choices, where it was asked for.

Rules:

- Reasoning is ``reasoning_content`` (DeepSeek, vLLM, llama.cpp) or ``reasoning`` (OpenRouter, Ollama); the protocol
  itself has neither. A refusal is text: it is what the user reads.
- Another id at an index that is taken is another call: some endpoints give every call the index 0, or none.
- Arguments may come before the name, as of a call that this knows nothing of yet: they wait for it.
- The arguments of all calls end with the stream: before, an endpoint may go on with any of them.
- The endpoint runs no tools, so a call has no result here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from tailrace.message.chunks import Chunk, FinishReason, Json, MessageFinishChunk, StepFinishChunk, StepStartChunk
from tailrace.message.controller import AssistantStreamController
from tailrace.message.text import TextWriter
from tailrace.message.tool_call import ToolCallWriter
from tailrace.worker.answer import Controller

if TYPE_CHECKING:
    from openai import AsyncStream
    from openai.types.chat import ChatCompletionChunk

_REASONS: Final[Mapping[str | None, FinishReason]] = MappingProxyType(
    {
        "stop": "stop",
        "length": "length",
        "tool_calls": "tool-calls",
        "function_call": "tool-calls",
        "content_filter": "content-filter",
        None: "unknown",
    }
)


class _Call:
    """A tool call of the model. ``writer`` is its part of the answer, None as long as the name is missing."""

    def __init__(self, call_id: str | None) -> None:
        self.id = call_id or ""
        self.writer: ToolCallWriter | None = None
        self._early = ""

    def feed(self, controller: AssistantStreamController, name: str | None, arguments: str) -> None:
        arguments = self._early + arguments
        if self.writer is None and name:
            self.writer = controller.add_tool_call_part(name, tool_call_id=self.id or None)
            self.id = self.writer.tool_call_id
        if self.writer is None:
            self._early = arguments
        elif arguments:
            self._early = ""
            self.writer.args.append(arguments)


class Completion:
    """One streamed completion: `chunks` gives its parts, `finish` then ends the step.

    The two are apart, since a step ends when its tools have answered::

        completion = Completion()
        step = await controller.accumulate(tool_result_stream(completion.chunks(stream), tools))
        completion.finish(controller, message=not step.tool_calls)
    """

    def __init__(self) -> None:
        self._written: list[Chunk] = []
        self._controller = Controller(self._written.append)
        self._calls: list[_Call] = []
        self._at: dict[int, _Call] = {}
        self._said: tuple[str, TextWriter] | None = None
        self._started = False
        self._reason: str | None = None
        self._usage: dict[str, Json] = {"inputTokens": 0, "outputTokens": 0}

    async def chunks(self, stream: AsyncStream[ChatCompletionChunk]) -> AsyncGenerator[Chunk]:
        """The parts of the answer as they come. Closes the stream; raises what it raises."""
        async with stream:
            async for part in stream:
                self._feed(part)
                while self._written:
                    yield self._written.pop(0)
        self._close_text()
        for call in self._calls:
            if call.writer is not None:
                call.writer.close()
        while self._written:
            yield self._written.pop(0)

    def finish(self, controller: AssistantStreamController, *, message: bool = True) -> None:
        """The end of the step, with its reason and usage. ``message``: the message ends, too."""
        reason = _REASONS.get(self._reason, "other")
        controller.enqueue(StepFinishChunk(reason, self._usage, is_continued=not message))
        if message:
            controller.enqueue(MessageFinishChunk(reason, self._usage))

    def _feed(self, part: ChatCompletionChunk) -> None:
        if not self._started:
            self._started = True
            self._controller.enqueue(StepStartChunk(part.id))
        if part.usage is not None:
            tokens = part.usage
            self._usage = {"inputTokens": tokens.prompt_tokens, "outputTokens": tokens.completion_tokens}
        for choice in part.choices:
            if choice.index == 0:
                self._delta(choice.delta)
                self._reason = choice.finish_reason or self._reason

    def _delta(self, delta: Any) -> None:
        reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
        if isinstance(reasoning, str):
            self._say("reasoning", reasoning)
        self._say("text", delta.content or "")
        self._say("text", delta.refusal or "")
        for piece in delta.tool_calls or ():
            self._call(piece)

    def _say(self, kind: str, text: str) -> None:
        if not text:
            return
        if self._said is None or self._said[0] != kind:
            self._close_text()
            controller = self._controller
            self._said = kind, controller.add_text_part() if kind == "text" else controller.add_reasoning_part()
        self._said[1].append(text)

    def _close_text(self) -> None:
        if self._said is not None:
            self._said[1].close()
            self._said = None

    def _call(self, piece: Any) -> None:
        self._close_text()
        index = getattr(piece, "index", None) or 0
        call = self._at.get(index)
        if call is None or (piece.id and call.id and piece.id != call.id):
            if call is not None and call.writer is not None:
                call.writer.args.close()
            call = self._at[index] = _Call(piece.id)
            self._calls.append(call)
        call.id = call.id or piece.id or ""
        function = piece.function
        call.feed(self._controller, getattr(function, "name", None), getattr(function, "arguments", None) or "")
