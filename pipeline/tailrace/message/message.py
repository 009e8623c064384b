"""The message that chunks build: parts, status and metadata.

Rules:

- A message is a value, and so is all in it: a later message shares with an earlier one whatever did not change.
- ``to_json`` gives the reference's keys in the reference's order. Its deprecated alias ``content`` is left out.
- UNDEFINED is an absent key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from tailrace.message.chunks import UNDEFINED, DataInit, FileInit, Json, SourceInit, Undefined
from tailrace.message.growing import GrowingText
from tailrace.message.growing_args import GrowingArgs
from tailrace.message.growing_state import WhenRead
from tailrace.message.vector import Vector

StatusType: TypeAlias = Literal["running", "requires-action", "complete", "incomplete"]
ToolState: TypeAlias = Literal["partial-call", "call", "result"]


def _present(**fields: Json) -> dict[str, Json]:
    return {name: value for name, value in fields.items() if value is not UNDEFINED}


@dataclass(frozen=True, slots=True)
class Status:
    """How far a part or a message is. ``error`` is a message's; ``is_args_complete`` a running tool call's."""

    type: StatusType
    reason: str | Undefined = UNDEFINED
    error: Json = UNDEFINED
    is_args_complete: bool | Undefined = UNDEFINED

    def to_json(self) -> dict[str, Json]:
        return _present(type=self.type, isArgsComplete=self.is_args_complete, reason=self.reason, error=self.error)


RUNNING: Final = Status("running")
ARGS_RUNNING: Final = Status("running", is_args_complete=False)
ARGS_COMPLETE: Final = Status("running", is_args_complete=True)
COMPLETE: Final = Status("complete", "unknown")
SETTLED: Final = Status("complete", "stop")


@dataclass(slots=True)
class TextPart:
    """Visible text."""

    growing: GrowingText
    status: Status = RUNNING
    parent_id: str | Undefined = UNDEFINED
    type: Literal["text"] = "text"

    @property
    def text(self) -> str:
        return str(self.growing)

    def to_json(self) -> dict[str, Json]:
        return _present(type=self.type, text=self.text, status=self.status.to_json(), parentId=self.parent_id)


@dataclass(slots=True)
class ReasoningPart:
    """The model's reasoning, perhaps with the application's summary."""

    growing: GrowingText
    status: Status = RUNNING
    unstable_summary: str | Undefined = UNDEFINED
    parent_id: str | Undefined = UNDEFINED
    type: Literal["reasoning"] = "reasoning"

    @property
    def text(self) -> str:
        return str(self.growing)

    def to_json(self) -> dict[str, Json]:
        return _present(
            type=self.type,
            text=self.text,
            status=self.status.to_json(),
            unstable_summary=self.unstable_summary,
            parentId=self.parent_id,
        )


@dataclass(slots=True)
class ToolCallPart:
    """A tool call.

    ``response`` has, once there is one, the keys artifact, result, isError, modelContent and messages, in the order in
    which they came; ``started_at`` and ``completed_at`` are milliseconds since the epoch (0.3.44).
    """

    tool_call_id: str
    tool_name: str
    growing: GrowingArgs
    state: ToolState = "partial-call"
    status: Status = ARGS_RUNNING
    started_at: float | Undefined = UNDEFINED
    completed_at: float | Undefined = UNDEFINED
    response: dict[str, Json] = field(default_factory=dict)
    parent_id: str | Undefined = UNDEFINED
    type: Literal["tool-call"] = "tool-call"

    @property
    def args_text(self) -> str:
        return str(self.growing)

    @property
    def args(self) -> Any:
        """The arguments so far. Read when asked for; ``growing.parsed`` also says which fields are complete."""
        return self.growing.value

    @property
    def result(self) -> Json:
        """The result, or UNDEFINED."""
        return self.response.get("result", UNDEFINED)

    def to_json(self) -> dict[str, Json]:
        timing = _present(startedAt=self.started_at, completedAt=self.completed_at)
        return _present(
            type=self.type,
            state=self.state,
            status=self.status.to_json(),
            toolCallId=self.tool_call_id,
            toolName=self.tool_name,
            argsText=self.args_text,
            args=self.args,
            timing=timing or UNDEFINED,
            parentId=self.parent_id,
            **self.response,
        )


@dataclass(slots=True)
class WholePart:
    """A source, a file or data: what came, and a status once the part is finished."""

    init: SourceInit | FileInit | DataInit
    fields: dict[str, Json]
    status: Status | None = None

    @property
    def type(self) -> Literal["source", "file", "data"]:
        return self.init.type

    def to_json(self) -> dict[str, Json]:
        return self.fields if self.status is None else {**self.fields, "status": self.status.to_json()}


Part: TypeAlias = TextPart | ReasoningPart | ToolCallPart | WholePart


@dataclass(slots=True)
class Step:
    """A step of the model's generation."""

    state: Literal["started", "finished"]
    message_id: Json
    finish_reason: Json = UNDEFINED
    usage: Json = UNDEFINED
    is_continued: Json = UNDEFINED

    def to_json(self) -> dict[str, Json]:
        return _present(
            state=self.state,
            messageId=self.message_id,
            finishReason=self.finish_reason,
            usage=self.usage,
            isContinued=self.is_continued,
        )


@dataclass
class Metadata:
    """What belongs to the message as a whole. ``timing`` is there once the message has stopped running."""

    unstable_state: Json = WhenRead()  # noqa: RUF009
    unstable_data: Vector[Json] = field(default_factory=Vector)
    unstable_annotations: Vector[Json] = field(default_factory=Vector)
    steps: Vector[Step] = field(default_factory=Vector)
    custom: dict[str, Json] = field(default_factory=dict)
    timing: dict[str, Json] | Undefined = UNDEFINED

    def to_json(self) -> dict[str, Json]:
        return _present(
            unstable_state=self.unstable_state,
            unstable_data=list(self.unstable_data),
            unstable_annotations=list(self.unstable_annotations),
            steps=[step.to_json() for step in self.steps],
            custom=self.custom,
            timing=self.timing,
        )


@dataclass(slots=True)
class Message:
    """An assistant's message as of some chunk."""

    status: Status = RUNNING
    parts: Vector[Part] = field(default_factory=Vector)
    metadata: Metadata = field(default_factory=Metadata)
    role: Literal["assistant"] = "assistant"

    @property
    def text(self) -> str:
        """The text of all text parts."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def tool_calls(self) -> list[ToolCallPart]:
        """The tool calls, in order."""
        return [part for part in self.parts if isinstance(part, ToolCallPart)]

    def to_json(self) -> dict[str, Json]:
        return {
            "role": self.role,
            "status": self.status.to_json(),
            "parts": [part.to_json() for part in self.parts],
            "metadata": self.metadata.to_json(),
        }
