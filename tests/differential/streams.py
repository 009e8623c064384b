"""Byte streams of every format, as hypothesis makes them: good ones, mutated ones, and where they are cut."""

from __future__ import annotations

import base64
from typing import Any, Final

from hypothesis import strategies as st
from programs import ARGS, PARENTS, REASONS, files, message_chunks, operations, part_chunks, sources, texts, values

from tailrace.wire.jsjson import stringify

FORMATS: Final = ("data-stream", "assistant-transport", "ui-message-stream", "plain-text", "object-stream")
"""What both releases decode; the UI message stream is 0.3.44's only, as 0.3.15 reads no stream of today's AI SDK."""

DEEP: Final = '{"a":' * 300 + "1" + "}" * 300

ids = st.sampled_from(("t1", "t1", "t2", "t2", "t3", "__proto__", "é"))
usages = st.sampled_from(({"inputTokens": 1, "outputTokens": 2}, None, {"inputTokens": None, "outputTokens": 0.5}))
deltas = texts | st.sampled_from(ARGS)
parents = st.sampled_from(PARENTS)


def obj(fixed: dict[str, Any] | None = None, /, optional: dict[str, Any] | None = None, **fields: Any) -> Any:
    made = {key: st.just(value) for key, value in (fixed or {}).items()}
    return st.fixed_dictionaries({**made, **fields}, optional=optional or {})


# ── frames ──

_PAYLOADS: Final[dict[str, st.SearchStrategy[Any]]] = {
    "0": texts,
    "g": texts,
    "2": st.lists(values, max_size=2),
    "8": st.lists(values, max_size=2),
    "3": texts,
    "b": obj(toolCallId=ids, toolName=texts, optional={"parentId": parents}),
    "c": obj(toolCallId=ids, argsTextDelta=deltas, optional={"isFinal": st.booleans()}),
    "a": obj(toolCallId=ids, optional={"result": values, "artifact": values, "isError": st.booleans() | st.none()}),
    "9": obj(toolCallId=ids, toolName=texts, optional={"args": values}),
    "f": obj(messageId=texts, optional={"path": st.just([]), "x": values}),
    "e": obj(
        finishReason=st.sampled_from(REASONS),
        usage=usages,
        isContinued=st.booleans(),
        optional={"path": st.just([])},
    ),
    "d": obj(finishReason=st.sampled_from(REASONS), usage=usages),
    "h": sources.map(lambda part: {key: part[key] for key in part if key != "type"}),
    "k": files.map(lambda part: {key: part[key] for key in part if key != "type"}),
    "i": values,
    "j": values,
    "aui-state": st.lists(operations, max_size=3),
    "aui-data": obj(name=texts, data=values, optional={"parentId": parents}),
    "aui-text-delta": obj(textDelta=texts, optional={"parentId": parents}),
    "aui-reasoning-delta": obj(reasoningDelta=texts, optional={"parentId": parents}),
    "aui-reasoning-part-start": obj(optional={"unstable_summary": texts, "parentId": parents}),
}
CODES: Final = tuple(_PAYLOADS)


def _frame(code: str) -> st.SearchStrategy[str]:
    return _PAYLOADS[code].map(lambda payload: f"{code}:{stringify(payload)}")


_odd_lines = st.one_of(
    st.sampled_from(
        (
            "",
            " ",
            "zz:1",
            "x",
            "0:",
            ":",
            '0:"',
            '0: "a" ',
            'b:{"toolCallId":"t1","toolCallId":"t2","toolName":"n"}',
            "constructor:1",
            "__proto__:{}",
            '0:"a"\u2028',
            "2:[1e400,-0,1.0]",
            '2:[{"__proto__":{}}]',
            '2:[{"constructor":{"prototype":1}}]',
            "h:" + DEEP,
        )
    ),
    st.builds(lambda code, payload: f"{code}:{stringify(payload)}", st.sampled_from(CODES), values),
)
_common_codes = st.sampled_from((*CODES, "0", "0", "g", "b", "b", "c", "c", "c", "a"))
data_stream_lines = st.sampled_from(range(15)).flatmap(
    lambda n: _odd_lines if n == 14 else _common_codes.flatmap(_frame)
)

_usage_event = {"finishReason": st.sampled_from((*REASONS, None)), "usage": usages}
_ui_events: Final[dict[str, st.SearchStrategy[Any]]] = {
    "start": obj(optional={"messageId": texts | st.none()}),
    "start-step": obj(optional={"messageId": texts | st.none()}),
    "text-start": obj(id=ids),
    "text-delta": obj(optional={"id": ids, "delta": texts, "textDelta": texts}),
    "text-end": obj(id=ids),
    "reasoning-start": obj(id=ids),
    "reasoning-delta": obj(delta=texts),
    "reasoning-end": obj(id=ids),
    "source": obj(source=sources | st.none()),
    "source-url": obj(sourceId=texts, url=texts, optional={"title": texts}),
    "file": obj(optional={"url": texts, "mediaType": texts, "file": files | st.none()}),
    "tool-call-start": obj(toolCallId=ids, toolName=texts),
    "tool-call-delta": obj(argsText=deltas),
    "tool-call-end": obj(),
    "tool-result": obj(
        toolCallId=ids, optional={"result": values, "isError": st.booleans() | st.none(), "messages": values}
    ),
    "tool-input-start": obj(toolCallId=ids, optional={"toolName": texts}),
    "tool-input-delta": obj(toolCallId=ids, inputTextDelta=deltas),
    "tool-input-available": obj(toolCallId=ids, optional={"toolName": texts, "input": values}),
    "tool-input-error": obj(toolCallId=ids, optional={"toolName": texts, "input": values, "errorText": texts}),
    "tool-output-available": obj(toolCallId=ids, optional={"output": values, "preliminary": st.booleans()}),
    "tool-output-error": obj(toolCallId=ids, optional={"errorText": texts}),
    "finish-step": obj(optional={**_usage_event, "isContinued": st.booleans() | st.none()}),
    "finish": obj(optional=_usage_event),
    "error": obj(optional={"errorText": texts}),
    "abort": obj(),
    "data-x": obj(optional={"data": values, "transient": st.booleans(), "id": texts}),
}
UI_EVENTS: Final = tuple(_ui_events)


def _ui_event(kind: str) -> st.SearchStrategy[Any]:
    return _ui_events[kind].map(lambda fields: {"type": kind, **fields})


_odd_values = st.one_of(
    values,
    st.builds(
        lambda chunk, key, value: {**chunk, key: value},
        part_chunks | message_chunks,
        st.sampled_from(("path", "type", "part", "textDelta", "annotations", "isError", "x")),
        values,
    ),
    st.builds(
        lambda chunk, at: {key: item for number, (key, item) in enumerate(chunk.items()) if number != at},
        part_chunks | message_chunks,
        st.integers(0, 3),
    ),
)
transport_chunks = st.sampled_from(range(10)).flatmap(lambda n: _odd_values if n == 9 else part_chunks | message_chunks)
ui_events = st.sampled_from(range(15)).flatmap(
    lambda n: values.map(lambda value: value) if n == 14 else st.sampled_from(UI_EVENTS).flatmap(_ui_event)
)
object_frames = st.sampled_from(range(15)).flatmap(lambda n: values if n == 14 else st.lists(operations, max_size=3))

_event_shapes = st.sampled_from(
    ("plain",) * 12
    + ("no space", "two lines", "spaces", "comment", "named message", "named other", "id", "empty", "field only")
)


def _event(value: Any, shape: str) -> list[str]:
    text = stringify(value)
    match shape:
        case "no space":
            return [f"data:{text}", ""]
        case "two lines" if "," in text:
            head, _, tail = text.partition(",")
            return [f"data: {head},", f"data: {tail}", ""]
        case "spaces":
            return [f"data:  \u00a0{text} " if len(text) % 2 else f"data:  {text} ", ""]
        case "comment":
            return [": keep-alive", f"data: {text}", ""]
        case "named message":
            return ["event: message", f"data: {text}", ""]
        case "named other":
            return ["event: other", f"data: {text}", ""]
        case "id":
            return ["id: 7", "retry: 10", f"data: {text}", ""]
        case "empty":
            return ["", f"data: {text}", "", ""]
        case "field only":
            return ["data", "event", f"data: {text}", ""]
    return [f"data: {text}", ""]


def _events(frames: st.SearchStrategy[Any], done: bool) -> st.SearchStrategy[list[str]]:
    body = st.lists(st.builds(_event, frames, _event_shapes), max_size=10).map(
        lambda events: [line for event in events for line in event]
    )
    if not done:
        return body
    ends = st.sampled_from((["data: [DONE]", ""],) * 9 + ([], ["data:[DONE]", "", "data: 1", ""], ["data: [DONE]"]))
    return st.builds(lambda lines, end: [*lines, *end], body, ends)


_lines: Final[dict[str, st.SearchStrategy[list[str]]]] = {
    "data-stream": st.lists(data_stream_lines, max_size=12),
    "assistant-transport": _events(transport_chunks, done=True),
    "ui-message-stream": _events(ui_events, done=True),
    "plain-text": st.lists(texts, max_size=8),
    "object-stream": _events(object_frames, done=False),
}


# ── bytes ──

MUTATIONS: Final = (
    "delete",
    "insert",
    "replace",
    "truncate",
    "double a line",
    "drop a line",
    "swap lines",
    "join lines",
)
_bits = st.sampled_from(
    (
        b'"',
        b"{",
        b"}",
        b"\n",
        b"\r",
        b"\r\n",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"\0",
        b"1",
        b",",
        b":",
        b"null",
        b"\\",
        b"\\ud800",
        b"[",
        b" ",
        b"-0",
        b"1e999",
        b"\xf0\x9f",
    )
)
_mutations = st.tuples(st.sampled_from(MUTATIONS), st.integers(0, 2**12), st.integers(0, 3), _bits)
_separators = st.sampled_from(("\n",) * 8 + ("\r\n", "\r\n", "\r"))


def mutate(data: bytes, kind: str, where: int, length: int, bits: bytes) -> bytes:
    """``data`` with one change at ``where``, which is taken modulo what there is."""
    if "line" in kind:
        lines = data.split(b"\n")
        at = where % len(lines)
        match kind:
            case "double a line":
                lines.insert(at, lines[at])
            case "drop a line":
                del lines[at]
            case "swap lines":
                lines[at], lines[at - 1] = lines[at - 1], lines[at]
            case "join lines":
                return b"\n".join(lines[: at + 1]) + b"\n".join(lines[at + 1 :])
        return b"\n".join(lines)
    at = where % (len(data) + 1)
    match kind:
        case "delete":
            return data[:at] + data[at + 1 + length :]
        case "insert":
            return data[:at] + bits + data[at:]
        case "replace":
            return data[:at] + bits + data[at + len(bits) :]
    return data[:at]


def _stream(
    format: str, strict: bool, lines: list[str], separator: str, bom: bool, mutations: list[Any], cuts: list[int]
) -> dict[str, Any]:
    text = separator.join(lines) if format == "plain-text" else "".join(line + separator for line in lines)
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8", "surrogatepass")
    for mutation in mutations:
        data = mutate(data, *mutation)
    return {
        "format": format,
        "strict": strict,
        "data": data,
        "cuts": cuts,
        "mutations": [kind for kind, *_ in mutations],
        "kinds": kinds_in(format, lines),
    }


def _streams_of(format: str) -> st.SearchStrategy[dict[str, Any]]:
    strict = st.sampled_from((True, True, False)) if format in ("data-stream", "assistant-transport") else st.just(True)
    return st.builds(
        _stream,
        st.just(format),
        strict,
        _lines[format],
        _separators,
        st.integers(0, 19).map(lambda n: n == 19),
        st.lists(_mutations, max_size=0) | st.lists(_mutations, max_size=3),
        st.lists(st.integers(0, 2**12), max_size=6),
    )


streams = st.sampled_from(
    (
        "data-stream",
        "data-stream",
        "data-stream",
        "assistant-transport",
        "assistant-transport",
        "ui-message-stream",
        "ui-message-stream",
        "plain-text",
        "object-stream",
    )
).flatmap(_streams_of)


def job(version: str, stream: dict[str, Any]) -> dict[str, Any]:
    """A job of a stream: its pieces end after every line, and at the stream's own cuts."""
    data: bytes = stream["data"]
    ends = {number + 1 for number, byte in enumerate(data) if byte == 10} | {
        cut % (len(data) + 1) for cut in stream["cuts"]
    }
    return {
        "do": "decode",
        "version": version,
        "format": stream["format"],
        "strict": stream["strict"] or version == "0.3.15",
        "b64": base64.b64encode(data).decode(),
        "ends": sorted((ends | {len(data)}) - {0}),
    }


# ── texts ──

_tokens = st.sampled_from(
    (
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        '"a"',
        '"1"',
        '"0"',
        '"\\ud83c',
        '\\udf0d"',
        '"\\u00',
        'e9"',
        '"__proto__"',
        "tru",
        "e",
        "true",
        "null",
        "nul",
        "false",
        "-",
        "1",
        "0",
        ".5",
        "e",
        "+",
        " ",
        "\n",
        '"',
        "\\",
        "é",
        "🌍",
        "\u2028",
        "12345678901234567890",
        "1e400",
        "NaN",
        "\ufeff",
        '"k":',
        '"constructor":',
        '{"a":',
        "[[",
    )
)
json_texts = st.one_of(
    st.lists(_tokens, max_size=14).map("".join),
    st.builds(lambda value, end: stringify(value)[: end or None], values, st.integers(0, 60)),
    st.builds(lambda value, end: stringify({"a": value, "b": [value]})[: end or None], values, st.integers(0, 60)),
)


def kinds_in(format: str, lines: list[str]) -> list[str]:
    """What a stream holds before anything is changed: the codes of its frames, or the types of its events."""
    if format == "data-stream":
        return [f"code {code}" for line in lines if (code := line.partition(":")[0]) in CODES]
    if format == "ui-message-stream":
        return [f"event {kind}" for line in lines for kind in UI_EVENTS if f'"type":"{kind}"' in line]
    return []
