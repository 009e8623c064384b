"""Messages of a thread as the messages that a model is given, in no provider's dialect.

Rules:

- A system message is its first text. A user message is its texts, images and files, attachments last; an assistant's
  is its texts and tool calls, with the results in a ``tool`` message of their own, before the next text.
- A provider refuses a tool call that nothing answers: one that was given up is answered with an error. One that still
  waits for its host (an approval, an interrupt) is left open.
- What has no content gives no message; parts of other types (reasoning, sources, data) are left out.

Following toGenericMessages of assistant-stream 0.3.44. There a file's ``data`` is a URL object or a string; here it is
a string, and a URL is written as the URL object would write itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

from tailrace.message.chunks import UNDEFINED, Json
from tailrace.message.message import Message
from tailrace.message.tool_call import NO_RESULT

GenericRole: TypeAlias = Literal["system", "user", "assistant", "tool"]

GenericMessage: TypeAlias = dict[str, Any]
"""``{"role": GenericRole, "content"}``: a str for system, else a list of parts

- ``{"type": "text", "text"}``
- ``{"type": "file", "data", "mediaType", "filename"?}``
- ``{"type": "tool-call", "toolCallId", "toolName", "args"}``
- ``{"type": "tool-result", "toolCallId", "toolName", "result", "isError"?}``
"""

_IMAGES: Final = {
    **{name: f"image/{name}" for name in ("png", "gif", "webp", "avif", "bmp", "heic", "heif", "tiff", "jpeg")},
    "jpg": "image/jpeg",
    "svg": "image/svg+xml",
    "ico": "image/x-icon",
    "tif": "image/tiff",
}
_DATA_URL: Final = re.compile("data:([^;,]+)", re.IGNORECASE)
_FULL_DATA_URL: Final = re.compile("data:([^;,]+)[;,]", re.IGNORECASE)


def to_generic_messages(messages: Iterable[Mapping[str, Json] | Message]) -> list[GenericMessage]:
    """The messages for a model of a thread's: ``{"role": "system" | "user" | "assistant", "content": [part, …],
    "attachments"?: [{"content": [part, …]}, …]}``, or a `Message`. Those of other roles are left out."""
    out: list[GenericMessage] = []
    for message in messages:
        if isinstance(message, Message):
            out += _assistant([part.to_json() for part in message.parts])
            continue
        match message.get("role"):
            case "system":
                out += _system(message["content"])
            case "user":
                attached = [part for one in message.get("attachments") or () for part in one["content"]]
                out += _user([*message["content"], *attached])
            case "assistant":
                out += _assistant(message["content"])
    return out


def _system(parts: Iterable[Mapping[str, Json]]) -> list[GenericMessage]:
    first = next((part for part in parts if part.get("type") == "text"), {})
    return [{"role": "system", "content": first["text"]}] if first.get("text") else []


# ── user ──


def _user(parts: Iterable[Mapping[str, Json]]) -> list[GenericMessage]:
    content = [one for part in parts if (one := _user_part(part)) is not None]
    return [{"role": "user", "content": content}] if content else []


def _user_part(part: Mapping[str, Json]) -> dict[str, Json] | None:
    match part.get("type"):
        case "text" if part.get("text"):
            return {"type": "text", "text": part["text"]}
        case "image" if part.get("image"):
            data, media_type = part["image"], image_media_type(part["image"])
        case "file" if isinstance(part.get("data"), str):
            data, media_type = part["data"], _media_type(part)
        case _:
            return None
    name = {"filename": part["filename"]} if part.get("filename") else {}
    return {"type": "file", "data": normal_url(data), "mediaType": media_type, **name}


def _media_type(part: Mapping[str, Json]) -> str:
    said = part.get("mimeType")
    if isinstance(said, str) and said:
        return said
    in_url = _FULL_DATA_URL.match(part["data"])
    return in_url[1].lower() if in_url else "application/octet-stream"


def image_media_type(url: str) -> str:
    """What kind of image a URL names: by its data type, else by its extension, else PNG."""
    if in_url := _DATA_URL.match(url):
        return in_url[1].lower()
    path = re.split("[?#]", url, maxsplit=1)[0]
    return _IMAGES.get(path.rpartition(".")[2].lower(), "image/png")


def normal_url(text: str) -> str:
    """A URL as the WHATWG standard writes it; any other text, base64 for one, as it is."""
    if ":" not in text:
        return text
    from pydantic_core import Url, ValidationError

    try:
        return str(Url(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")))
    except ValidationError:
        return text


# ── assistant ──


def _assistant(parts: Iterable[Mapping[str, Json]]) -> list[GenericMessage]:
    out: list[GenericMessage] = []
    said: list[dict[str, Json]] = []
    results: list[dict[str, Json]] = []

    def flush() -> None:
        for role, content in (("assistant", said), ("tool", results)):
            if content:
                out.append({"role": role, "content": [*content]})
                content.clear()

    for part in parts:
        if part.get("type") == "text" and part.get("text"):
            if results:
                flush()
            said.append({"type": "text", "text": part["text"]})
        elif part.get("type") == "tool-call" and part.get("toolCallId") and part.get("toolName"):
            call = {"toolCallId": part["toolCallId"], "toolName": part["toolName"]}
            args = part.get("args")
            said.append({"type": "tool-call", **call, "args": {} if args is None or args is UNDEFINED else args})
            if (answer := _result(part)) is not None:
                results.append({"type": "tool-result", **call, **answer})
    flush()
    return out


def _result(part: Mapping[str, Json]) -> dict[str, Json] | None:
    result = part.get("result", UNDEFINED)
    settled = part.get("state") == "result" or result is not UNDEFINED
    if not settled:
        if _awaits_host(part):
            return None
        return {"result": {"error": "Tool call was not completed"}, "isError": True}
    error = {"isError": True} if part.get("isError") else {}
    return {"result": NO_RESULT if result is UNDEFINED else result, **error}


def _awaits_host(part: Mapping[str, Json]) -> bool:
    if part.get("interrupt") is not None:
        return True
    approval = part.get("approval")
    if approval is None:
        return False
    return approval.get("approved") is not False and approval.get("resolution", UNDEFINED) is UNDEFINED
