"""The formats' own rules: limits, order, errors, the registry."""

import contextlib

import pytest

from tailrace.errors import UnknownFormat
from tailrace.message import (
    PartFinishChunk,
    PartStartChunk,
    ResultChunk,
    TextDeltaChunk,
    TextInit,
    ToolCallArgsTextFinishChunk,
    UnknownInit,
)
from tailrace.wire import FORMATS, find_format, format_of, object_stream
from tailrace.wire.errors import InvalidStream, JsonTooDeep, LineTooLong, StreamCut, UnsupportedChunk
from tailrace.wire.lines import LineDecoder, TextDecoder
from tailrace.wire.sse import SseDecoder

LINE_FORMATS = [name for name in FORMATS if not name.startswith("plain-text")]


def test_a_format_is_found_by_name_and_dialect() -> None:
    assert find_format("data-stream;v=0.3.44") is find_format("data-stream") is FORMATS["data-stream"]
    assert find_format("data-stream; v=0.3.15") is FORMATS["data-stream;v=0.3.15"]
    for name in ("morse", "data-stream;v=0.1.0", ""):
        with pytest.raises(UnknownFormat):
            find_format(name)


def test_headers_are_upstreams() -> None:
    assert dict(FORMATS["data-stream"].headers) == {
        "Content-Type": "text/plain; charset=utf-8",
        "x-vercel-ai-data-stream": "v1",
    }
    assert dict(FORMATS["plain-text"].headers) == {"Content-Type": "text/plain; charset=utf-8"}
    assert FORMATS["assistant-transport"].headers["Content-Type"] == "text/event-stream"
    for format in FORMATS.values():
        assert format.encoder().headers == format.headers


@pytest.mark.parametrize("name", [name for name in FORMATS if ";" not in name])
def test_a_format_is_known_by_its_headers(name: str) -> None:
    headers = FORMATS[name].headers
    found = format_of(headers["Content-Type"], [(key.upper(), value) for key, value in headers.items()])
    assert found is FORMATS[name]
    assert format_of(headers["Content-Type"], headers) is found


def test_the_older_dialect_has_the_newer_ones_headers_or_the_data_streams() -> None:
    for name in ("data-stream", "assistant-transport", "plain-text"):
        headers = FORMATS[f"{name};v=0.3.15"].headers
        expected = "data-stream" if name == "plain-text" else name
        assert format_of(headers["Content-Type"], headers) is FORMATS[expected]


def test_other_headers_name_no_format() -> None:
    for content_type in (None, "", "application/octet-stream", "text/html", "text/plainer"):
        assert format_of(content_type) is None
    assert format_of("text/event-stream", object_stream.HEADERS) is None
    assert format_of("Text/Plain") is FORMATS["plain-text"]


@pytest.mark.parametrize("name", LINE_FORMATS)
def test_an_endless_line_is_refused(name: str) -> None:
    decoder = FORMATS[name].decoder(max_line=100)
    for _ in range(10):
        assert decoder.feed(b'0:"aaaaaaa') == []
    with pytest.raises(LineTooLong):
        decoder.feed(b"a")
    with pytest.raises(LineTooLong):
        decoder.close()


def test_an_event_of_endless_lines_is_refused() -> None:
    decoder = SseDecoder(max_line=100)
    for _ in range(16):
        decoder.feed(b"data: 12345\n")
    with pytest.raises(LineTooLong):
        decoder.feed(b"data: 12345\n")


@pytest.mark.parametrize("name", LINE_FORMATS)
def test_deep_nesting_is_a_typed_error(name: str) -> None:
    payload = b"[" * 50_000
    data = b"2:" + payload + b"\n" if name.startswith("data-stream") else b"data: " + payload + b"\n\n"
    with pytest.raises(JsonTooDeep):
        FORMATS[name].decoder().feed(data)


def test_good_chunks_come_before_the_error_of_the_same_piece() -> None:
    decoder = FORMATS["data-stream;v=0.3.15"].decoder()
    assert decoder.feed(b'0:"a"\nzz:1\n0:"b"\n') == [PartStartChunk(TextInit()), TextDeltaChunk("a", (0,))]
    for call in (lambda: decoder.feed(b""), decoder.close):
        with pytest.raises(InvalidStream, match="unsupported chunk type: zz"):
            call()


def test_chunks_of_one_frame_are_in_program_order() -> None:
    decoder = FORMATS["data-stream"].decoder()
    decoder.feed(b'0:"a"\nb:{"toolCallId":"t","toolName":"n"}\n')
    assert decoder.feed(b'a:{"toolCallId":"t","result":1}\n') == [
        ResultChunk(1, path=(1,)),
        TextDeltaChunk("{}", (1,)),
        ToolCallArgsTextFinishChunk((1,)),
        PartFinishChunk((1,)),
    ]


@pytest.mark.parametrize("payload", ["null", "5", '"x"', "[1]", "{}"])
@pytest.mark.parametrize("code", ["b", "c", "a", "9", "h", "k", "aui-data", "aui-text-delta", "f", "d", "0", "2", "8"])
@pytest.mark.parametrize("name", ["data-stream", "data-stream;v=0.3.15"])
def test_a_payload_of_the_wrong_type_is_chunks_or_a_typed_error(name: str, code: str, payload: str) -> None:
    decoder = FORMATS[name].decoder()
    with contextlib.suppress(InvalidStream):  # nothing else may come out
        decoder.feed(f"{code}:{payload}\n".encode())
        decoder.close()


def test_a_long_incomplete_line_is_shortened_in_the_error() -> None:
    decoder = FORMATS["data-stream"].decoder()
    decoder.feed(b"x" * 5000)
    with pytest.raises(StreamCut) as caught:
        decoder.close()
    assert len(caught.value.message) < 1100


@pytest.mark.parametrize("line", ["{}:1", 'a:{{"toolCallId":"{}"}}', 'c:{{"toolCallId":"{}","argsTextDelta":""}}'])
def test_what_is_quoted_of_the_bytes_is_bounded(line: str) -> None:
    data = line.format("z" * 100_000).encode() + b"\n"
    lenient = FORMATS["data-stream"].decoder(strict=False)
    lenient.feed(data)
    assert 0 < sum(map(len, lenient.drops)) < 2000
    with pytest.raises(InvalidStream) as caught:
        FORMATS["data-stream;v=0.3.15"].decoder().feed(data)
    assert len(caught.value.message) < 2000
    assert caught.value.message.endswith("…")


def test_drops_are_counted_once_and_bounded() -> None:
    decoder = FORMATS["data-stream"].decoder(strict=False)
    for number in range(50):
        assert decoder.feed(f"z{number}:1\n".encode() * 2) == []
    assert decoder.drops[0] == "Dropped unsupported chunk type: z0"
    assert len(decoder.drops) == 20


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([PartStartChunk(TextInit(), (0,))], "Nested parts are not supported"),
        ([TextDeltaChunk("a")], "text-delta chunks must have a path of length 1"),
        ([TextDeltaChunk("a", (0,))], "Invalid path index: 0"),
        ([PartFinishChunk((0, 1))], "part-finish chunks must have a path of length 1"),
        (
            [PartStartChunk(TextInit()), ResultChunk(1, path=(0,))],
            "Result chunk on non-tool-call part not supported: text",
        ),
        (
            [PartStartChunk(UnknownInit({"type": "x"})), TextDeltaChunk("a", (0,))],
            "Unsupported part type for text-delta: x",
        ),
    ],
)
def test_chunks_that_the_data_stream_cannot_carry(chunks: list[PartStartChunk], message: str) -> None:
    encoder = FORMATS["data-stream"].encoder()
    for chunk in chunks[:-1]:
        encoder.encode(chunk)
    with pytest.raises(UnsupportedChunk) as caught:
        encoder.encode(chunks[-1])
    assert caught.value.message == message


def test_plain_text_joins_a_pair_cut_in_two() -> None:
    encoder = FORMATS["plain-text"].encoder()
    encoder.encode(PartStartChunk(TextInit()))
    pieces = ["a\ud83c", "", "\udf0d", "\udf0d", "\ud83c", "b", "\ud83c"]
    out = [encoder.encode(TextDeltaChunk(piece, (0,))) for piece in pieces]
    assert b"".join(out).decode() == "a🌍\ufffd\ufffdb"
    assert encoder.finish().decode() == "\ufffd"


def test_lines_end_only_where_they_should() -> None:
    text = "a\u2028b\x0bc\x85d\x1ce\r\nf\n\ng\rh"
    assert LineDecoder().feed(text) == ["a\u2028b\x0bc\x85d\x1ce", "f", "", "g"]
    assert LineDecoder(lone_cr=False).feed(text) == ["a\u2028b\x0bc\x85d\x1ce", "f", ""]


def test_a_crlf_cut_in_two_is_one_line_end() -> None:
    lines = LineDecoder()
    assert lines.feed("a\r") == ["a"]
    assert lines.feed("") == []
    assert lines.feed("\nb\n") == ["b"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfa", "a"),
        (b"\xef\xbb\xbf\xef\xbb\xbfa", "\ufeffa"),
        (b"\xff", "\ufffd"),
        (b"\xc3\x28", "\ufffd("),
        (b"\xe2\x82", "\ufffd"),
        (b"\xf0\x9f\x8cx", "\ufffdx"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xc0\xaf\xf5\x80", "\ufffd\ufffd\ufffd\ufffd"),
    ],
)
def test_bad_utf8_reads_as_in_the_web(data: bytes, text: str) -> None:
    for size in (1, len(data)):
        decoder = TextDecoder()
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert "".join([*map(decoder.feed, pieces), decoder.close()]) == text


def test_sse_fields() -> None:
    decoder = SseDecoder()
    events = decoder.feed(
        b"\xef\xbb\xbf: hi\nid: 1\nevent: e\ndata:a\ndata:  b\ndata\n\nevent: lost\n\ndata: c\r\n\r\n"
    )
    assert [(event.event, event.data) for event in events] == [("e", "a\n b\n"), ("message", "c")]
    assert decoder.feed(b"data: cut off\n") == []
    assert decoder.close() == []
