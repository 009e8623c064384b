"""A thread and its tools as an OpenAI-compatible chat endpoint is given them.

Theory: `to_generic_messages` decides what a model is told of a thread; here that gets the protocol's words.

Rules:

- Arguments and results are JSON text; a result that is a string is that text.
- Where a result has ``model_content``, its texts take the result's place. The protocol has no file in a tool's message:
  they are left out, and where there is nothing else, the result stays.
- An image goes as ``image_url``, any other file as ``file``. Both are URLs; bare base64 becomes a data URL.

Messages: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from tailrace.message.chunks import Json
from tailrace.message.generic import GenericMessage, to_generic_messages
from tailrace.message.message import Message
from tailrace.message.tool_schema import to_tools_json_schema
from tailrace.message.tools import Tool
from tailrace.wire.jsjson import stringify

_TOLD: Final = ("description", "parameters")  # of a tool; a provider's own options have no place here
_URLS: Final = ("data:", "http:", "https:")


def to_openai_tools(tools: Mapping[str, Tool]) -> list[Any]:
    """What ``tools`` of a request is: all that are enabled and have parameters, whoever runs them."""
    told = to_tools_json_schema(tools, filter=lambda name, tool: not tool.disabled)
    return [
        {"type": "function", "function": {"name": name, **{key: one[key] for key in _TOLD if key in one}}}
        for name, one in told.items()
    ]


def to_openai_messages(messages: Iterable[Mapping[str, Json] | Message]) -> list[Any]:
    """What ``messages`` of a request is, of the messages that `to_generic_messages` takes."""
    thread = list(messages)
    shown = dict(shown for message in thread for shown in _shown(message))
    return [said for message in to_generic_messages(thread) for said in _said(message, shown)]


def _shown(message: Mapping[str, Json] | Message) -> Iterable[tuple[str, list[Json]]]:
    """(tool call id, texts) of the calls whose result the model shall see otherwise."""
    if not isinstance(message, Message):
        parts = message["content"] if message.get("role") == "assistant" else ()
    else:
        parts = [part.to_json() for part in message.tool_calls]
    for part in parts:
        content = part.get("modelContent") if part.get("type") == "tool-call" else None
        texts = [{"type": "text", "text": one["text"]} for one in content or () if one.get("type") == "text"]
        if texts:
            yield part["toolCallId"], texts


def _said(message: GenericMessage, shown: Mapping[str, list[Json]]) -> Iterable[dict[str, Json]]:
    role, content = message["role"], message["content"]
    match role:
        case "system":
            yield {"role": role, "content": content}
        case "user":
            yield {"role": role, "content": [part if part["type"] == "text" else _file(part) for part in content]}
        case "assistant":
            text = "".join(part["text"] for part in content if part["type"] == "text")
            calls = [_call(part) for part in content if part["type"] == "tool-call"]
            yield {"role": role, "content": text or None, **({"tool_calls": calls} if calls else {})}
        case "tool":
            for part in content:
                result, call_id = part["result"], part["toolCallId"]
                said = shown.get(call_id) or (result if isinstance(result, str) else stringify(result))
                yield {"role": role, "tool_call_id": call_id, "content": said}


def _call(part: Mapping[str, Json]) -> dict[str, Json]:
    function = {"name": part["toolName"], "arguments": stringify(part["args"])}
    return {"id": part["toolCallId"], "type": "function", "function": function}


def _file(part: Mapping[str, Json]) -> dict[str, Json]:
    data, media_type = part["data"], part["mediaType"]
    url = data if data.startswith(_URLS) else f"data:{media_type};base64,{data}"
    if media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    name = {"filename": part["filename"]} if "filename" in part else {}
    return {"type": "file", "file": {"file_data": url, **name}}
