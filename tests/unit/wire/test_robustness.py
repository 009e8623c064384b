"""Every decoder, given what a broken or hostile sender may send: chunks, or an error of the WireError tree.

Nothing else is ever raised, wherever the bytes are cut, and what was decoded does not depend on the cuts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace.errors import LimitExceeded
from tailrace.message.chunks import Chunk, chunk_from_json
from tailrace.message.errors import InvalidUpdate
from tailrace.message.state import StateAccumulator
from tailrace.wire import FORMATS
from tailrace.wire.errors import InvalidJson, JsonTooDeep, LineTooLong, StreamCut, WireError
from tailrace.wire.jsjson import stringify
from tailrace.wire.object_stream import STATES, ObjectChunk, ObjectStreamEncoder

Make = Callable[..., Any]
few = settings(max_examples=25)  # of each decoder, and every example is read three times

MAKERS: dict[str, Make] = {
    **{name: format.decoder for name, format in FORMATS.items()},
    **{name: format.decoder for name, format in STATES.items() if not name.endswith("0.3.44")},
    "data-stream lenient": partial(FORMATS["data-stream"].decoder, strict=False),
    "assistant-transport lenient": partial(FORMATS["assistant-transport"].decoder, strict=False),
    "object-stream lenient": partial(STATES["object-stream"].decoder, strict=False),
}
TEXT = [name for name in MAKERS if name.startswith("plain-text")]
LINES = [name for name in MAKERS if name not in TEXT]
EVENTS = [name for name in LINES if not name.startswith("data-stream")]
ENDED = [name for name in EVENTS if not name.startswith("object-stream")]  # those with [DONE]

CHUNKS: list[dict[str, Any]] = [
    {"type": "step-start", "path": [], "messageId": "m"},
    {"type": "part-start", "part": {"type": "text"}, "path": []},
    {"type": "text-delta", "path": [0], "textDelta": 'a\u2028\n\r"\\ \x00 🌍é'},
    {"type": "part-finish", "path": [0]},
    {"type": "part-start", "part": {"type": "tool-call", "toolName": "t", "toolCallId": "c"}, "path": []},
    {"type": "text-delta", "path": [1], "textDelta": '{"a":[1e400,"\\ud800"]}'},
    {"type": "tool-call-args-text-finish", "path": [1]},
    {"type": "result", "path": [1], "result": {"__proto__x": 1, "2": 2, "1": 1}, "isError": False},
    {"type": "part-finish", "path": [1]},
    {"type": "error", "path": [], "error": "no"},
]
OPERATIONS: list[list[dict[str, Any]]] = [
    [{"type": "set", "path": ["a"], "value": {"x": [1, "é"]}}],
    [{"type": "append-text", "path": ["a", "x", "1"], "value": "🌍"}],
]


def valid(name: str) -> bytes:
    """An answer in the format, from its own encoder."""
    base = name.removesuffix(" lenient")
    if base in STATES:
        encoder = ObjectStreamEncoder(legacy=base.endswith("0.3.15"))
        state = StateAccumulator({})
        parts = []
        for operations in OPERATIONS:
            state.append(operations)
            parts.append(encoder.encode(ObjectChunk(state.state, operations)))
        return b"".join(parts)
    to_bytes = FORMATS[base].encoder()
    chunks = [chunk_from_json(one) for one in CHUNKS if base != "plain-text;v=0.3.15" or one["type"] == "text-delta"]
    return b"".join([*map(to_bytes.encode, chunks), to_bytes.finish()])


def framed(name: str, value: Any) -> bytes:
    """The value as JSON in a frame of the format; text in bytes is taken as it is."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"data: " + text + b"\n\n" if name in EVENTS else text + b"\n"


def decoded(make: Make, pieces: Iterable[bytes], **options: Any) -> tuple[list[str], WireError | None]:
    """The chunks, and the error that ended them; any other error passes through, and fails the test."""
    decoder = make(**options)
    chunks: list[str] = []
    try:
        for piece in pieces:
            chunks.extend(stringify(chunk.to_json()) for chunk in decoder.feed(piece))
        chunks.extend(stringify(chunk.to_json()) for chunk in decoder.close())
    except WireError as error:
        ended = error
    else:
        return chunks, None
    assert ended.code != "wire-error"
    assert ended.message
    assert ended.hint
    with pytest.raises(type(ended)):  # it stays broken
        decoder.feed(b"x")
    return chunks, ended


def every_cut(data: bytes, cuts: Iterable[int] = ()) -> list[list[bytes]]:
    ends = sorted(set(cuts))
    random = [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]
    return [[data], [data[at : at + 1] for at in range(len(data))], [b"", *random, b""]]


def the_same_however_cut(name: str, data: bytes, cuts: Iterable[int] = (), **options: Any) -> tuple[list[str], Any]:
    results = [decoded(MAKERS[name], pieces, **options) for pieces in every_cut(data, cuts)]
    first, error = results[0]
    for chunks, other in results[1:]:
        if name in TEXT:  # the pieces are the deltas
            assert texts_of(chunks) == texts_of(first)
        else:
            assert chunks == first
        assert (type(other), str(other)) == (type(error), str(error))
    return first, error


def texts_of(chunks: list[str]) -> str:
    return "".join(json.loads(chunk).get("textDelta", "") for chunk in chunks)


# ── what is valid, disturbed ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MAKERS)
def test_an_answer_is_read_whole_and_in_bytes(name: str) -> None:
    chunks, error = the_same_however_cut(name, valid(name))
    assert error is None
    assert chunks


@pytest.mark.parametrize("name", MAKERS)
@few
@given(data=st.data())
def test_an_answer_is_read_however_it_is_cut(name: str, data: st.DataObject) -> None:
    answer = valid(name)
    the_same_however_cut(name, answer, data.draw(st.lists(st.integers(1, len(answer) - 1))))


@pytest.mark.parametrize("name", MAKERS)
@few
@given(data=st.data())
def test_a_mutated_answer_is_chunks_or_a_typed_error(name: str, data: st.DataObject) -> None:
    answer = bytearray(valid(name))
    for at in data.draw(st.lists(st.integers(0, len(answer) - 1), min_size=1, max_size=8)):
        answer[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'\n\r:"{}[]\\,0d\x00\xed\xff'))
    end = data.draw(st.integers(0, len(answer)))
    the_same_however_cut(name, bytes(answer[:end]), data.draw(st.lists(st.integers(1, max(end - 1, 1)), max_size=4)))


@pytest.mark.parametrize("name", MAKERS)
def test_an_answer_cut_short_is_never_more_than_the_answer(name: str) -> None:
    answer = valid(name)
    whole, _ = decoded(MAKERS[name], [answer])
    for end in range(len(answer)):
        chunks, error = decoded(MAKERS[name], [answer[:end]])
        if name in TEXT:
            assert texts_of(whole).startswith(texts_of(chunks).rstrip("\ufffd"))
        elif error is not None:
            assert whole[: len(chunks)] == chunks
        if name in ENDED and "lenient" not in name and end < len(answer) - 1:
            assert isinstance(error, StreamCut), end


@pytest.mark.parametrize("name", ENDED)
def test_what_follows_the_end_is_not_read(name: str) -> None:
    answer = valid(name)
    for trailing in (b"data: {}\n\n", b"\xff\x00", b"data: [DONE]\n\n", b"x" * 5000):
        assert the_same_however_cut(name, answer + trailing, max_line=500) == decoded(MAKERS[name], [answer])


@pytest.mark.parametrize("name", sorted(set(MAKERS) - set(ENDED)))
def test_what_follows_is_read_on_where_nothing_marks_the_end(name: str) -> None:
    chunks, error = the_same_however_cut(name, valid(name) + b"trailing")
    assert "trailing" in texts_of(chunks) or error is not None or name in EVENTS
    assert chunks


@pytest.mark.parametrize("name", LINES)
def test_crlf_ends_lines_too(name: str) -> None:
    assert the_same_however_cut(name, valid(name).replace(b"\n", b"\r\n")) == decoded(MAKERS[name], [valid(name)])


@pytest.mark.parametrize("name", MAKERS)
def test_a_byte_order_mark_is_no_text(name: str) -> None:
    chunks, error = the_same_however_cut(name, b"\xef\xbb\xbf" + valid(name))
    assert (texts_of(chunks), error) == (texts_of(decoded(MAKERS[name], [valid(name)])[0]), None)


# ── what is hostile ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_at_all(name: str) -> None:
    chunks, error = the_same_however_cut(name, b"")
    assert chunks == []
    assert isinstance(error, StreamCut) == (name in ENDED and "lenient" not in name)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\x00" * 1000 + b"\n",
        b"\n" * 1000,
        b"\r\n" * 1000,
        b"\r" * 1000,
        b":" * 1000 + b"\n\n",
        b"\xff\xfe\xfd\n\n",
        b"\xed\xa0\x80\n\n",  # half a pair, in UTF-8's manner
        b"\xc0\xaf\xf5\x80\x80\x80\n\n",  # overlong, and beyond the last character
        b"\xf0\x9f\x8c",  # the end within a character
        b'0:"\xf0\x9f\n',
        b"data: \xf0\x9f\x8c\n\n",
        b"\xef\xbb\xbf" * 3,
        b"\xef\xbb",
        b"data",
        b"data\n\n",
        b"data:\n\n",
        b"event: x\n\n",
        b"event: x\ndata: {}\n\n",
        b"id: 1\nretry: 5\n\n",
        b"data: [\ndata: ]\n\n",
        b'0:"a"\r0:"b"\r\r\n\n',
        b"0\n",
        b"0:\n",
        b'0:"a',
        b'0:"a"x\n',
        b"0:'a'\n",
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", MAKERS)
def test_bytes_that_nobody_should_send(name: str, data: bytes) -> None:
    for given_bytes in (data, valid(name) + data, data + valid(name)):
        the_same_however_cut(name, given_bytes)


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize(
    "piece", [b"x" * 64, b"\xff" * 64, "é".encode() * 32, b"data: " + b"y" * 58], ids=["x", "bad", "é", "data"]
)
def test_an_endless_line_costs_no_more_than_the_setting(name: str, piece: bytes) -> None:
    decoder = MAKERS[name](max_line=1000)
    for _ in range(1000 // len(piece.decode(errors="replace").encode())):
        assert decoder.feed(piece) == []
    with pytest.raises(LineTooLong, match="1000 bytes") as raised:
        decoder.feed(piece)
    assert isinstance(raised.value, LimitExceeded)
    assert raised.value.setting == "TAILRACE_MAX_LINE_BYTES"


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("character", ["x", "é", "🌍"])
def test_the_longest_line_is_counted_in_bytes(name: str, character: str) -> None:
    line = (": " if name in EVENTS else '0:"').encode() + character.encode() * 100
    line += b"" if name in EVENTS else b'"'
    _, error = the_same_however_cut(name, line + b"\n", max_line=len(line))
    assert not isinstance(error, LineTooLong)
    _, error = the_same_however_cut(name, line + b"\n", max_line=len(line) - 1)
    assert isinstance(error, LineTooLong)


@pytest.mark.parametrize("name", LINES)
def test_the_lines_before_a_long_one_are_read(name: str) -> None:
    answer = valid(name).replace(b"data: [DONE]\n\n", b"")
    chunks, error = the_same_however_cut(name, answer + b"z" * 5000, max_line=1000)
    assert chunks == decoded(MAKERS[name], [answer, b"z" * 5000], max_line=1000)[0]
    assert isinstance(error, LineTooLong)
    assert any("a" in chunk for chunk in chunks)


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_of_endless_lines_costs_no_more_than_the_setting(name: str) -> None:
    _, error = the_same_however_cut(name, b"data: x\n" * 2000, max_line=1000)
    assert isinstance(error, LineTooLong)


NASTY = {
    "many arrays": b"[" * 20_000 + b"]" * 20_000,
    "many open arrays": b"[" * 20_000,
    "many objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "infinite": b"1e400",
    "digits": b"1" * 400,
    "more digits than int() takes": b"-" + b"9" * 10_000,
    "small": b"1e-400",
    "fraction": b"0." + b"1" * 10_000,
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "proto": b'{"__proto__":{"x":1}}',
    "escaped proto": b'{"\\u005f_proto__":1}',
    "constructor": b'{"constructor":{"prototype":{}}}',
    "half a pair": b'"\\ud800"',
    "the other half": b'"\\udfff\\ud800x"',
    "bad escape": b'"\\x41"',
    "control": b'"\x01"',
    "escaped nul": b'"\\u0000"',
    "twice": b'{"a":1,"a":2,"1":3,"0":4}',
    "nothing": b"",
    "space": b"   ",
    "two": b"1 2",
    "null": b"null",
    "true": b"true",
}


@pytest.mark.parametrize("payload", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("name", LINES)
def test_json_that_nobody_should_send(name: str, payload: bytes) -> None:
    field = b'{"type":"%s","path":[],"data":%s,"value":%s}'
    kinds = (b"data", b"error", b"data-x", b"start", b"tool-result", b"result", b"set")
    frames = [payload, *(field % (kind, b"[%s]" % payload, payload) for kind in kinds)]
    frames += [b"[" + frame + b"]" for frame in frames]
    codes = (b"0", b"2", b"3", b"8", b"9", b"a", b"b", b"d", b"f", b"h", b"k", b"aui-state", b"aui-data")
    if name not in EVENTS:
        frames = [
            code + b":" + frame
            for code in codes
            for frame in (payload, b"[%s]" % payload, field % (b"x", b"1", payload))
        ]
    for frame in frames:
        data = framed(name, frame)
        whole = decoded(MAKERS[name], [data])
        middle = len(data) // 2
        halves = decoded(MAKERS[name], [data[:middle], data[middle:]])
        assert (whole[0], str(whole[1])) == (halves[0], str(halves[1]))
        if payload.count(b"[") + payload.count(b"{") > 1000 and whole[1] is not None:
            assert isinstance(whole[1], JsonTooDeep | InvalidJson | StreamCut) or not whole[0]


# ── frames of the right shape with the wrong values ───────────────────────────────────────────────────────────────────

SCALARS = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -0.0,
        -1,
        1.5,
        2**53,
        10**400,
        1e308,
        "",
        "0",
        "x",
        "\ud800",
        "\x00",
        "__proto__",
        [],
        {},
        "c",
    ]
)
VALUES = st.recursive(
    SCALARS | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "path", "0", "__proto__", "toolCallId", "text", "é"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
TYPES = """part-start part-finish tool-call-args-text-finish text-delta annotations data step-start step-finish
message-finish result error update-state start start-step reasoning-delta source source-url file tool-call-start
tool-call-delta tool-call-end tool-result tool-input-start tool-input-delta tool-input-available tool-input-error
tool-output-available tool-output-error finish-step finish data-x text reasoning tool-call set append-text""".split()  # noqa: SIM905 - a list of words reads best as words
FIELDS = """path part textDelta annotations data finishReason usage isContinued messageId result isError artifact
modelContent messages error code severity operations delta id sourceId url title mediaType toolCallId toolName input
inputTextDelta argsText argsTextDelta output errorText preliminary transient parentId value sourceType mimeType file
source text""".split()  # noqa: SIM905 - a list of words reads best as words
OBJECTS = st.builds(
    lambda kind, fields: {"type": kind, **fields},
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(FIELDS), VALUES | st.just([0]) | st.just({"type": "text"}), max_size=6),
)
CODES = st.sampled_from(
    [*"0g2839abcdefhkij", "aui-state", "aui-data", "aui-text-delta", "aui-reasoning-delta", "z", ""]
)


@st.composite
def frames(draw: st.DrawFn, name: str) -> bytes:
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        value = draw(OBJECTS | VALUES)
        if name.startswith("object-stream"):
            parts.append(framed(name, draw(st.lists(OBJECTS | VALUES, max_size=3) | st.just(value))))
        elif name in EVENTS:
            parts.append(framed(name, value))
        else:
            parts.append(draw(CODES).encode() + b":" + framed(name, value))
    return b"".join(parts) + (b"data: [DONE]\n\n" if name in ENDED and draw(st.booleans()) else b"")


@pytest.mark.parametrize("name", LINES)
@few
@given(data=st.data())
def test_frames_of_wrong_values_are_chunks_or_typed_errors(name: str, data: st.DataObject) -> None:
    stream = data.draw(frames(name))
    the_same_however_cut(name, stream, data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=3)))


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.startswith("plain-text")])
@few
@given(data=st.data())
def test_whatever_was_decoded_is_encoded_or_refused_by_type(name: str, data: st.DataObject) -> None:
    decoder = MAKERS[name]()
    chunks: list[Chunk] = []
    try:
        chunks += decoder.feed(data.draw(frames(name)))
        chunks += decoder.close()
    except WireError:
        pass
    for format in FORMATS.values():
        encoder = format.encoder()
        for chunk in chunks:
            try:
                encoder.encode(chunk).decode()
            except WireError:
                pass
        encoder.finish().decode()


@given(st.lists(st.lists(OBJECTS, max_size=3), max_size=4))
def test_operations_fit_or_are_refused_by_type(batches: list[list[dict[str, Any]]]) -> None:
    for strict in (True, False):
        state = StateAccumulator({}, strict=strict)
        for batch in batches:
            before = state.state
            try:
                state.append(batch)
            except InvalidUpdate:
                assert strict
                assert state.state is before
