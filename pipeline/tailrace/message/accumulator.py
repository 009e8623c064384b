"""The accumulator: a message as of every chunk.

Theory: each chunk makes one small change, and the new message shares the rest with the one before. What a chunk costs
does not depend on how many came before it; text is joined and arguments are parsed when somebody reads them.

Rules:

- 0.3.44 leaves out a chunk that fits no part, and says so once in ``drops``; 0.3.15 raises InvalidUpdate.
- A part of an unknown type becomes an empty reasoning part, so that the indices after it stay right (0.3.44).
- A message that is in error keeps that status. From the first chunk at which it no longer runs it carries its timing.
- `close` ends a message that still runs: a tool call without a result asks for action, else it is complete.
- After an error every further call raises it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias, TypeGuard

from tailrace.message.chunks import (
    UNDEFINED,
    AnnotationsChunk,
    Chunk,
    DataChunk,
    DataInit,
    ErrorChunk,
    FileInit,
    Json,
    MessageFinishChunk,
    PartFinishChunk,
    PartStartChunk,
    ReasoningInit,
    ResultChunk,
    SourceInit,
    StepFinishChunk,
    StepStartChunk,
    TextDeltaChunk,
    TextInit,
    ToolCallArgsTextFinishChunk,
    ToolCallInit,
    UpdateStateChunk,
)
from tailrace.message.dialect import LEGACY, NEWEST, Dialect
from tailrace.message.errors import InvalidUpdate
from tailrace.message.growing import GrowingText
from tailrace.message.growing_args import GrowingArgs
from tailrace.message.ids import NewId
from tailrace.message.message import (
    ARGS_COMPLETE,
    COMPLETE,
    SETTLED,
    Message,
    Part,
    ReasoningPart,
    Status,
    Step,
    TextPart,
    ToolCallPart,
    WholePart,
)
from tailrace.message.state import StateAccumulator
from tailrace.message.timing import Clock, TimingTracker
from tailrace.wire.errors import shortened

MAX_DROPS: Final = 16

_ORPHAN: Final = {  # what 0.3.15 says, and what 0.3.44 says of a chunk whose part is of the wrong type
    "tool-call-args-text-finish": ("Last is not a tool call", "part is not a tool-call"),
    "text-delta": (
        "text-delta received but part is neither text nor tool-call",
        "part is neither text nor tool-call",
    ),
    "result": ("Result chunk received but part is not a tool-call", "part is not a tool-call"),
}

PartChunk: TypeAlias = TextDeltaChunk | PartFinishChunk | ToolCallArgsTextFinishChunk | ResultChunk


class AssistantMessageAccumulator:
    """Builds one message. ``clock`` gives milliseconds since the epoch, ``new_id`` names a step that was never started.

    ``initial`` is the message to go on with. ``strict`` off leaves out state operations that do not fit.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        new_id: NewId,
        initial: Message | None = None,
        dialect: Dialect = NEWEST,
        strict: bool = True,
    ) -> None:
        self.message = initial or Message()
        self.drops: list[str] = []
        self._clock = clock
        self._new_id = new_id
        self._legacy = dialect == LEGACY
        self._timing = TimingTracker(clock)
        self._failed: InvalidUpdate | None = None
        self._dropped: set[str] = set()
        state = self.message.metadata.unstable_state
        self._state = StateAccumulator(state, strict=strict, dialect=dialect, drop=lambda text: self._drop(text, text))
        self._text_length = sum(_utf16(part.text) for part in self.message.parts if _is_text(part))
        self._step_tokens: float = sum(_tokens(step.usage) for step in self.message.metadata.steps)
        self._final_tokens: float = 0

    def feed(self, chunk: Chunk) -> Message:
        """The message with this chunk. Raises InvalidUpdate for one that fits nothing."""
        if self._failed is not None:
            raise self._failed
        self._timing.chunk()
        try:
            self.message = _HANDLERS[type(chunk)](self, chunk)
        except InvalidUpdate as error:
            self._failed = error
            raise
        if self.message.status.type != "running":
            self.message = self._timed(self.message)
        return self.message

    def close(self) -> Message | None:
        """The message at the stream's end, if that changes it. Raises what `feed` raised."""
        if self._failed is not None:
            raise self._failed
        if self.message.status.type != "running":
            return None
        waits = any(isinstance(part, ToolCallPart) and part.state != "result" for part in self.message.parts)
        status = _status("tool-calls" if waits else "unknown")
        self.message = self._timed(replace(self.message, status=status))
        return self.message

    # ── parts ──

    def _part_start(self, chunk: PartStartChunk) -> Message:
        part: Part
        match chunk.part:
            case TextInit() as init:
                part = TextPart(GrowingText(), parent_id=init.parent_id or UNDEFINED)
            case ReasoningInit() as init:
                summary = UNDEFINED if self._legacy else init.unstable_summary
                part = ReasoningPart(GrowingText(), unstable_summary=summary, parent_id=init.parent_id or UNDEFINED)
            case ToolCallInit() as init:
                part = self._tool_call(init)
            case SourceInit() | FileInit() | DataInit() as init:
                part = WholePart(init, _whole_fields(init))
            case unknown:
                if self._legacy:
                    raise InvalidUpdate(f"Unsupported part type: {unknown.type}")
                self._drop(f"unsupported-part-start:{unknown.type}", f"Unsupported part-start type {unknown.type}")
                part = ReasoningPart(GrowingText())
        return replace(self.message, parts=self.message.parts.append(part))

    def _tool_call(self, init: ToolCallInit) -> ToolCallPart:
        started = UNDEFINED if self._legacy else self._clock()
        self._timing.tool_call(init.tool_call_id)
        return ToolCallPart(
            init.tool_call_id,
            init.tool_name,
            GrowingArgs(legacy=self._legacy),
            started_at=started,
            parent_id=init.parent_id or UNDEFINED,
        )

    def _text_delta(self, chunk: TextDeltaChunk) -> Message:
        part, delta = self._part_at(chunk), chunk.text_delta
        if not isinstance(delta, str):
            raise InvalidUpdate("A text-delta's textDelta is a string")
        if part is None:
            return self.message
        if isinstance(part, WholePart):
            return self._orphan(chunk)
        self._timing.text()
        if not isinstance(part, ToolCallPart):
            self._text_length += _utf16(delta)
        return self._replaced(chunk, _grown(part, delta))

    def _part_finish(self, chunk: PartFinishChunk) -> Message:
        part = self._part_at(chunk)
        if part is None:
            return self.message
        return self._replaced(chunk, replace(part, status=COMPLETE))

    def _args_finish(self, chunk: ToolCallArgsTextFinishChunk) -> Message:
        part = self._part_at(chunk)
        if part is None:
            return self.message
        if not isinstance(part, ToolCallPart):
            return self._orphan(chunk)
        if part.state != "partial-call":
            return self.message
        status = ARGS_COMPLETE if part.status.type == "running" and not self._legacy else part.status
        return self._replaced(chunk, replace(part, state="call", status=status))

    def _result(self, chunk: ResultChunk) -> Message:
        part = self._part_at(chunk)
        if part is None:
            return self.message
        if not isinstance(part, ToolCallPart):
            return self._orphan(chunk)
        completed = part.completed_at
        if part.started_at is not UNDEFINED and completed is UNDEFINED:
            completed = self._clock()
        changed = replace(
            part, state="result", status=SETTLED, completed_at=completed, response={**part.response, **_response(chunk)}
        )
        return self._replaced(chunk, changed)

    def _part_at(self, chunk: PartChunk) -> Part | None:
        parts, path = self.message.parts, chunk.path
        if len(path) == 1 and 0 <= path[0] < len(parts):
            return parts[path[0]]
        where = f"[{', '.join(map(str, path))}]"
        if self._legacy:
            raise InvalidUpdate(
                "No parts available to update."
                if not parts
                else "Nested paths are not supported yet."
                if len(path) != 1
                else f"No part at path {where}"
            )
        self._drop(f"no-part:{chunk.type}", f"Dropped {chunk.type} chunk: no part at path {where}")
        return None

    def _replaced(self, chunk: PartChunk, part: Part) -> Message:
        message = self.message
        return Message(message.status, message.parts.set(chunk.path[0], part), message.metadata)

    def _orphan(self, chunk: PartChunk) -> Message:
        then, now = _ORPHAN[chunk.type]
        if self._legacy:
            raise InvalidUpdate(then)
        self._drop(f"wrong-part:{chunk.type}", f"Dropped {chunk.type} chunk: {now}")
        return self.message

    def _drop(self, key: str, text: str) -> None:
        if key not in self._dropped and len(self.drops) < MAX_DROPS:
            self._dropped.add(key)
            self.drops.append(shortened(text))

    # ── the message ──

    def _message_finish(self, chunk: MessageFinishChunk) -> Message:
        self._final_tokens = 0 if self._legacy else _tokens(chunk.usage)
        status = self.message.status
        if status.type == "incomplete" and status.reason == "error":
            return self.message
        return replace(self.message, status=_status(chunk.finish_reason))

    def _error(self, chunk: ErrorChunk) -> Message:
        error: Json = chunk.error
        if not self._legacy:
            error = {
                "code": "unknown" if _missing(chunk.code) else chunk.code,
                "message": "unknown error" if _missing(chunk.error) else chunk.error,
            }
            if chunk.severity in ("critical", "warning", "info"):
                error["severity"] = chunk.severity
        return replace(self.message, status=Status("incomplete", "error", error))

    def _annotations(self, chunk: AnnotationsChunk) -> Message:
        old = self.message.metadata.unstable_annotations
        return self._described(unstable_annotations=old.extend(chunk.annotations))

    def _data(self, chunk: DataChunk) -> Message:
        return self._described(unstable_data=self.message.metadata.unstable_data.extend(chunk.data))

    def _update_state(self, chunk: UpdateStateChunk) -> Message:
        self._state.append(chunk.operations)
        return self._described()

    def _step_start(self, chunk: StepStartChunk) -> Message:
        return self._described(steps=self.message.metadata.steps.append(Step("started", chunk.message_id)))

    def _step_finish(self, chunk: StepFinishChunk) -> Message:
        steps = self.message.metadata.steps
        started = steps and steps[-1].state == "started"
        message_id = steps[-1].message_id if started else self._new_id()
        step = Step("finished", message_id, chunk.finish_reason, chunk.usage, chunk.is_continued)
        self._step_tokens += _tokens(chunk.usage)
        return self._described(steps=steps.set(len(steps) - 1, step) if started else steps.append(step))

    def _described(self, **changes: Any) -> Message:
        return self._with_metadata(self.message, **changes)

    def _with_metadata(self, message: Message, **changes: Any) -> Message:
        metadata = replace(message.metadata, unstable_state=self._state.tree, **changes)  # so that `replace` reads none
        return replace(message, metadata=metadata)

    def _timed(self, message: Message) -> Message:
        tokens = self._final_tokens if self._final_tokens > 0 else self._step_tokens
        timing = self._timing.timing(tokens, self._text_length)
        return self._with_metadata(message, timing=timing)


_HANDLERS: Final[dict[type, Callable[[AssistantMessageAccumulator, Any], Message]]] = {
    PartStartChunk: AssistantMessageAccumulator._part_start,
    TextDeltaChunk: AssistantMessageAccumulator._text_delta,
    PartFinishChunk: AssistantMessageAccumulator._part_finish,
    ToolCallArgsTextFinishChunk: AssistantMessageAccumulator._args_finish,
    ResultChunk: AssistantMessageAccumulator._result,
    MessageFinishChunk: AssistantMessageAccumulator._message_finish,
    ErrorChunk: AssistantMessageAccumulator._error,
    AnnotationsChunk: AssistantMessageAccumulator._annotations,
    DataChunk: AssistantMessageAccumulator._data,
    UpdateStateChunk: AssistantMessageAccumulator._update_state,
    StepStartChunk: AssistantMessageAccumulator._step_start,
    StepFinishChunk: AssistantMessageAccumulator._step_finish,
}


def _grown(part: TextPart | ReasoningPart | ToolCallPart, text: str) -> Part:
    if type(part) is TextPart:  # by far the most frequent one: `replace` is slow
        return TextPart(part.growing.append(text), part.status, part.parent_id)
    if isinstance(part, ToolCallPart):
        return replace(part, growing=part.growing.append(text))
    return replace(part, growing=part.growing.append(text))


def _status(reason: Json) -> Status:
    if reason == "tool-calls":
        return Status("requires-action", reason)
    return Status("complete" if reason in ("stop", "unknown") else "incomplete", reason)


def _response(chunk: ResultChunk) -> dict[str, Json]:
    response: dict[str, Json] = {} if chunk.artifact is UNDEFINED else {"artifact": chunk.artifact}
    response |= {"result": chunk.result, "isError": False if _missing(chunk.is_error) else chunk.is_error}
    for name, value in (("modelContent", chunk.model_content), ("messages", chunk.messages)):
        if value is not UNDEFINED:
            response[name] = value
    return response


def _whole_fields(init: SourceInit | FileInit | DataInit) -> dict[str, Json]:
    match init:
        case SourceInit():
            title = init.title or UNDEFINED
            fields = {"sourceType": init.source_type, "id": init.id, "url": init.url, "title": title}
        case FileInit():
            fields = {"mimeType": init.mime_type, "data": init.data}
        case DataInit():
            fields = {"name": init.name, "data": init.data}
    fields = {"type": init.type, **fields, "parentId": init.parent_id or UNDEFINED}
    return {name: value for name, value in fields.items() if value is not UNDEFINED}


def _missing(value: Json) -> bool:
    return value is None or value is UNDEFINED


def _is_text(part: Part) -> TypeGuard[TextPart | ReasoningPart]:
    return isinstance(part, TextPart | ReasoningPart)


def _utf16(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _tokens(usage: Json) -> float:
    """The output tokens, as JavaScript adds them: a usage without any makes the sum NaN, which counts as none."""
    if not isinstance(usage, Mapping):
        return 0
    tokens = usage.get("outputTokens", UNDEFINED)
    return tokens if isinstance(tokens, int | float) else 0 if tokens is None else float("nan")
