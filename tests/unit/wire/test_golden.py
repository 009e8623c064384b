"""Every recorded case in every format and dialect: the same bytes, and the same chunks however the bytes are cut."""

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace.errors import TailraceError
from tailrace.message import chunk_from_json
from tailrace.wire import Decoder, find_format
from tailrace.wire.errors import InvalidJson
from tailrace.wire.jsjson import stringify

GOLDEN = Path(__file__).parents[2] / "golden"
VERSIONS = ("0.3.15", "0.3.44")
FORMATS = {"dataStream": "data-stream", "assistantTransport": "assistant-transport", "plainText": "plain-text"}
VECTORS = [
    pytest.param(
        version, name, case[mode]["chunks"]["out"], case[mode][key], id=f"{version}-{name}-{case['name']}-{mode}"
    )
    for version in VERSIONS
    for case in json.loads((GOLDEN / f"vectors-{version}.json").read_text())["cases"]
    for mode in ("quiesced", "burst")
    for key, name in FORMATS.items()
]
DECODED = json.loads((GOLDEN / "decoded.json").read_text())


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    return [data[start:end] for start, end in pairwise([0, *sorted(cuts), len(data)])]


def decode(decoder: Decoder, pieces: list[bytes]) -> tuple[list[str], TailraceError | None]:
    """The chunks as JSON texts, and the error that ended them."""
    out: list[str] = []
    try:
        for piece in pieces:
            out += [stringify(chunk.to_json()) for chunk in decoder.feed(piece)]
        out += [stringify(chunk.to_json()) for chunk in decoder.close()]
    except TailraceError as error:
        return out, error
    return out, None


def decoder_of(case: dict[str, Any]) -> Decoder:
    options = {} if case["strict"] else {"strict": False}
    return find_format(format_name(case["format"], case["version"])).decoder(**options)


def format_name(name: str, version: str) -> str:
    return f"{name};v={version}"


def by_part(chunks: list[str]) -> dict[str, list[str]]:
    """The chunks of each part, and those of the message: what the event loop of upstream does not mix up."""
    parts: dict[str, list[str]] = {}
    for text in chunks:
        chunk = json.loads(text)
        key = "starts" if chunk["type"] == "part-start" else str(chunk["path"])
        parts.setdefault(key, []).append(text)
    return parts


@pytest.mark.parametrize(("version", "name", "chunks", "recorded"), VECTORS)
def test_encoding_gives_the_recorded_bytes(
    version: str, name: str, chunks: list[Any], recorded: dict[str, Any]
) -> None:
    encoder = find_format(f"{name};v={version}").encoder()
    out, message = b"", None
    try:
        for chunk in chunks:
            out += encoder.encode(chunk_from_json(chunk))
        out += encoder.finish()
    except TailraceError as error:
        message = error.message
    assert out == base64.b64decode(recorded["b64"])
    assert (message is None) == (recorded["error"] is None)
    assert message is None or recorded["error"].endswith(message)


DELIBERATE = {
    # 0.3.15 passes on what is no chunk; here that is an error.
    ("0.3.15", "assistant-transport", name): "An event holds no chunk"
    for name in ("null", "arr", "no type", "bad type", "bad path", "fields")
} | {
    # 0.3.15 leaves an absent path absent; here it is the message's.
    ("0.3.15", "assistant-transport", "no path"): "",
}


@pytest.mark.parametrize(
    "case", DECODED, ids=lambda case: f"{case['version']}-{case['format']}-{case['name'].replace(' ', '_')}"
)
def test_decoding_gives_the_recorded_chunks(case: dict[str, Any]) -> None:
    data = base64.b64decode(case["b64"])
    lines = [line for line in pieces_of(data, [at + 1 for at, byte in enumerate(data) if byte == 10]) if line]
    out, error = decode(decoder_of(case), lines)
    difference = DELIBERATE.get((case["version"], case["format"], case["name"]))
    if difference is not None:
        assert difference in str(error)
        return
    assert (error is None) == (case["error"] is None)
    if error is None:
        assert by_part(out) == by_part(case["chunks"])
        return
    # an error overtakes the last chunks in upstream's event loop
    got, wanted = by_part(out), by_part(case["chunks"])
    assert all(got[key][: len(chunks)] == chunks for key, chunks in wanted.items())
    assert isinstance(error, InvalidJson) or error.message == case["error"]  # how a parser words it is its own


def test_deliberate_differences_are_all_needed() -> None:
    names = {(case["version"], case["format"], case["name"]) for case in DECODED}
    assert set(DELIBERATE) <= names


CUTTABLE = [case for case in DECODED if case["format"] != "plain-text"]


@pytest.mark.parametrize("case", CUTTABLE, ids=lambda case: f"{case['version']}-{case['format']}-{case['name']}")
def test_whole_and_byte_by_byte_are_the_same(case: dict[str, Any]) -> None:
    data = base64.b64decode(case["b64"])
    whole, error = decode(decoder_of(case), [data])
    single, other = decode(decoder_of(case), [bytes([byte]) for byte in data])
    assert single == whole
    assert repr(other) == repr(error)


@settings(max_examples=300)
@given(st.data())
def test_random_cuts_change_nothing(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(CUTTABLE))
    stream = base64.b64decode(case["b64"])
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    whole, error = decode(decoder_of(case), [stream])
    cut, other = decode(decoder_of(case), pieces_of(stream, cuts))
    assert cut == whole
    assert repr(other) == repr(error)


@settings(max_examples=300)
@given(st.data())
def test_mutated_bytes_end_in_chunks_or_a_typed_error(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(DECODED))
    stream = bytearray(base64.b64decode(case["b64"]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream)))
        stream[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"\n", b'"', b"{", b"null", b":", b"1e999"])
        )
    whole, error = decode(decoder_of(case), [bytes(stream)])
    if case["format"] != "plain-text":
        single, other = decode(decoder_of(case), [bytes([byte]) for byte in stream])
        assert single == whole
        assert repr(other) == repr(error)


@given(st.lists(st.text(st.characters(codec=None)), max_size=5))
def test_texts_survive_the_formats_that_carry_them(texts: list[str]) -> None:
    start = [{"type": "part-start", "part": {"type": "text"}, "path": []}]
    chunks = [
        chunk_from_json(c) for c in [*start, *({"type": "text-delta", "path": [0], "textDelta": t} for t in texts)]
    ]
    for name in ("data-stream", "data-stream;v=0.3.15", "assistant-transport"):
        encoder, decoder = find_format(name).encoder(), find_format(name).decoder()
        stream = b"".join([*map(encoder.encode, chunks), encoder.finish()])
        out, error = decode(decoder, [stream])
        assert error is None
        assert [json.loads(t)["textDelta"] for t in out if "textDelta" in t] == [
            json.loads(stringify(t)) for t in texts
        ]
