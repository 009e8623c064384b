"""The chunk model: what an answer is made of, whatever format carries it.

Theory: an answer is a sequence of chunks. A part opens with a `PartStartChunk` whose path is the container's (``()``
for the message), is fed by chunks whose path ends in the part's index, and closes with a `PartFinishChunk`.

Rules:

- A chunk is a value: nothing changes one after it is made (`with_path` makes another). The classes are not frozen only
  because freezing triples the cost of making one.
- `UNDEFINED` is an absent key and None is ``null``; they are never mixed up. A field that a sender left out is
  UNDEFINED even where the type says otherwise: `chunk_from_json` keeps what came, it does not judge
  (`schema.validate_chunk` does).
- ``to_json`` gives the keys in the order in which upstream's controllers write them. A chunk that came with another
  order, or with keys that this model does not know, remembers that in ``source`` and gives the same back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Self, TypeAlias

from tailrace.errors import TailraceError
from tailrace.message.values import UNDEFINED as UNDEFINED
from tailrace.message.values import Json as Json
from tailrace.message.values import JsonObject, assign, only_instances, source_field
from tailrace.message.values import Undefined as Undefined

Path: TypeAlias = tuple[int, ...]

FinishReason: TypeAlias = Literal["stop", "length", "content-filter", "tool-calls", "error", "other", "unknown"]
Severity: TypeAlias = Literal["critical", "warning", "info"]


class InvalidChunk(TailraceError):
    """A JSON value that is no chunk: no object, of an unknown type, or with a path that is not a list of indices."""

    code = "invalid-chunk"
    hint = "A chunk is a JSON object with a known type and, unless it is the message's, a path."


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class TextInit(JsonObject):
    """A part of visible text."""

    json_order = ("type", "parent_id")
    parent_id: str | Undefined = UNDEFINED
    type: Literal["text"] = "text"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class ReasoningInit(JsonObject):
    """A part of the model's reasoning, perhaps with a summary written by the application."""

    json_order = ("type", "unstable_summary", "parent_id")
    unstable_summary: str | Undefined = UNDEFINED
    parent_id: str | Undefined = UNDEFINED
    type: Literal["reasoning"] = "reasoning"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class ToolCallInit(JsonObject):
    """A tool call; its arguments follow as text deltas, its response as a `ResultChunk`."""

    json_order = ("type", "tool_name", "tool_call_id", "parent_id")
    tool_name: str
    tool_call_id: str
    parent_id: str | Undefined = UNDEFINED
    type: Literal["tool-call"] = "tool-call"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class SourceInit(JsonObject):
    """A cited source."""

    json_order = ("type", "source_type", "id", "url", "title", "parent_id")
    id: str
    url: str
    title: str | Undefined = UNDEFINED
    parent_id: str | Undefined = UNDEFINED
    source_type: Literal["url"] = "url"
    type: Literal["source"] = "source"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class FileInit(JsonObject):
    """A file: ``data`` is base64 or a URL."""

    json_order = ("type", "data", "mime_type", "parent_id")
    data: str
    mime_type: str
    parent_id: str | Undefined = UNDEFINED
    type: Literal["file"] = "file"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class DataInit(JsonObject):
    """A part with the application's own data under a name."""

    json_order = ("type", "name", "data", "parent_id")
    name: str
    data: Json
    parent_id: str | Undefined = UNDEFINED
    type: Literal["data"] = "data"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class UnknownInit:
    """A part of a type that this model does not know, kept as it came."""

    fields: Mapping[str, Json]
    parent_id: ClassVar[Undefined] = UNDEFINED

    @property
    def type(self) -> Json:
        return self.fields.get("type", UNDEFINED)

    def to_json(self) -> dict[str, Json]:
        return dict(self.fields)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return only_instances(cls)


PartInit: TypeAlias = TextInit | ReasoningInit | ToolCallInit | SourceInit | FileInit | DataInit


# ── chunks ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Chunk(JsonObject):
    __slots__ = ()
    path: Path

    def json_value(self, attribute: str) -> Json:
        value = getattr(self, attribute)
        return list(value) if attribute == "path" else value

    def with_path(self, path: Path) -> Self:
        """The same chunk at another path, its key order kept."""
        new = self.copy()
        assign(new, "path", path)
        return new


@dataclass(slots=True)
class PartStartChunk(_Chunk):
    """Opens a part in the container at ``path``."""

    json_order = ("type", "part", "path")
    part: PartInit | UnknownInit
    path: Path = ()
    type: Literal["part-start"] = "part-start"
    source: Mapping[str, Json] | None = source_field()

    def json_value(self, attribute: str) -> Json:
        if attribute == "part":
            return self.part.to_json()
        return _Chunk.json_value(self, attribute)


@dataclass(slots=True)
class PartFinishChunk(_Chunk):
    """Closes the part at ``path``."""

    json_order = ("type", "path")
    path: Path = ()
    type: Literal["part-finish"] = "part-finish"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class ToolCallArgsTextFinishChunk(_Chunk):
    """The arguments of the tool call at ``path`` are complete."""

    json_order = ("type", "path")
    path: Path = ()
    type: Literal["tool-call-args-text-finish"] = "tool-call-args-text-finish"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class TextDeltaChunk(_Chunk):
    """More text of the part at ``path``: of a text, of reasoning, or of a tool call's arguments."""

    json_order = ("type", "path", "text_delta")
    text_delta: str
    path: Path = ()
    type: Literal["text-delta"] = "text-delta"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class AnnotationsChunk(_Chunk):
    """Annotations of the message."""

    json_order = ("type", "path", "annotations")
    annotations: list[Json]
    path: Path = ()
    type: Literal["annotations"] = "annotations"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class DataChunk(_Chunk):
    """The application's data that belongs to the message."""

    json_order = ("type", "path", "data")
    data: list[Json]
    path: Path = ()
    type: Literal["data"] = "data"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class StepStartChunk(_Chunk):
    """A step of the model's generation begins."""

    json_order = ("type", "path", "message_id")
    message_id: str
    path: Path = ()
    type: Literal["step-start"] = "step-start"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class StepFinishChunk(_Chunk):
    """A step ends; ``usage`` is ``{"inputTokens", "outputTokens"}``."""

    json_order = ("type", "path", "finish_reason", "usage", "is_continued")
    finish_reason: FinishReason
    usage: dict[str, Json]
    is_continued: bool = False
    path: Path = ()
    type: Literal["step-finish"] = "step-finish"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class MessageFinishChunk(_Chunk):
    """The message ends; ``usage`` is ``{"inputTokens", "outputTokens"}``."""

    json_order = ("type", "path", "finish_reason", "usage")
    finish_reason: FinishReason
    usage: dict[str, Json]
    path: Path = ()
    type: Literal["message-finish"] = "message-finish"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class ResultChunk(_Chunk):
    """The response of the tool call at ``path``."""

    json_order = ("type", "path", "artifact", "result", "is_error", "model_content", "messages")
    result: Json
    is_error: bool = False
    artifact: Json = UNDEFINED
    model_content: list[Json] | Undefined = UNDEFINED
    messages: Json = UNDEFINED
    path: Path = ()
    type: Literal["result"] = "result"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class ErrorChunk(_Chunk):
    """An error of the whole answer. Without a severity, or a critical one, it ends the message."""

    json_order = ("type", "path", "error", "code", "severity")
    error: str
    code: str | Undefined = UNDEFINED
    severity: Severity | Undefined = UNDEFINED
    path: Path = ()
    type: Literal["error"] = "error"
    source: Mapping[str, Json] | None = source_field()


@dataclass(slots=True)
class UpdateStateChunk(_Chunk):
    """Operations on the state that the answer carries, each ``{"type": "set" | "append-text", "path", "value"}``."""

    json_order = ("type", "path", "operations")
    operations: list[Json]
    path: Path = ()
    type: Literal["update-state"] = "update-state"
    source: Mapping[str, Json] | None = source_field()


Chunk: TypeAlias = (
    PartStartChunk
    | PartFinishChunk
    | ToolCallArgsTextFinishChunk
    | TextDeltaChunk
    | AnnotationsChunk
    | DataChunk
    | StepStartChunk
    | StepFinishChunk
    | MessageFinishChunk
    | ResultChunk
    | ErrorChunk
    | UpdateStateChunk
)

CHUNK_TYPES: Final[dict[str, type[Chunk]]] = {
    "part-start": PartStartChunk,
    "part-finish": PartFinishChunk,
    "tool-call-args-text-finish": ToolCallArgsTextFinishChunk,
    "text-delta": TextDeltaChunk,
    "annotations": AnnotationsChunk,
    "data": DataChunk,
    "step-start": StepStartChunk,
    "step-finish": StepFinishChunk,
    "message-finish": MessageFinishChunk,
    "result": ResultChunk,
    "error": ErrorChunk,
    "update-state": UpdateStateChunk,
}

PART_TYPES: Final[dict[str, type[PartInit]]] = {
    "text": TextInit,
    "reasoning": ReasoningInit,
    "tool-call": ToolCallInit,
    "source": SourceInit,
    "file": FileInit,
    "data": DataInit,
}

_TEXT_DELTA_KEYS: Final = list(TextDeltaChunk.json_keys)


def part_from_json(value: Mapping[str, Json]) -> PartInit | UnknownInit:
    """The part that a JSON object describes; an `UnknownInit` if its type is unknown. Fields are kept as they came."""
    kind = value.get("type")
    cls = PART_TYPES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        return UnknownInit(value)
    part = object.__new__(cls)
    _fill(part, value)
    return part


def chunk_from_json(value: Json) -> Chunk:
    """The chunk that a parsed JSON value describes; a missing path is the message's.

    Raises InvalidChunk if it is not an object, has an unknown type, a path that is not a list of indices, or a
    part-start without a part. Other fields are kept as they came, a missing one as UNDEFINED.
    """
    if not isinstance(value, Mapping):
        raise InvalidChunk(f"A chunk is a JSON object, not {type(value).__name__}")
    kind = value.get("type")
    cls = CHUNK_TYPES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise InvalidChunk(f"Unknown chunk type: {kind!r}")
    path = _path_from_json(value.get("path", ()))
    if cls is TextDeltaChunk and list(value) == _TEXT_DELTA_KEYS:
        return TextDeltaChunk(value["textDelta"], path)  # nearly every chunk is one: a third of the way below
    chunk = object.__new__(cls)
    _fill(chunk, value)
    chunk.path = path
    if isinstance(chunk, PartStartChunk):
        if not isinstance(value.get("part"), Mapping):
            raise InvalidChunk("A part-start chunk needs a part, which is a JSON object")
        chunk.part = part_from_json(value["part"])
    if "path" not in value:
        chunk.source = {**value, "path": []}
    return chunk


def _fill(target: JsonObject, value: Mapping[str, Json]) -> None:
    for name, attribute in target.json_keys.items():
        assign(target, attribute, value.get(name, UNDEFINED))
    assign(target, "source", None)
    target.keep_source(value)


def _path_from_json(value: Json) -> Path:
    if type(value) is list and len(value) == 1 and type(value[0]) is int and value[0] >= 0:
        return (value[0],)
    if isinstance(value, list | tuple) and all(
        isinstance(index, int | float) and not isinstance(index, bool) and index >= 0 and float(index).is_integer()
        for index in value
    ):
        return tuple(map(int, value))
    raise InvalidChunk("A chunk's path is a list of indices")
