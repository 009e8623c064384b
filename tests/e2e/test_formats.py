"""`convert` and `inspect`, as processes: answers in and out of pipes and a real broker."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tailrace.commands.inspect import decoder_of
from tailrace.model import Status, StreamInfo
from tailrace.settings import load
from tailrace.testing.servers import NatsServer
from tailrace.wire import FORMATS, find_format
from tailrace.wire.data_stream_decoder import DataStreamDecoder
from tailrace.wire.jsjson import stringify
from tailrace.wire.object_stream import ObjectStreamDecoder
from tailrace.wire.ui_message_stream_decoder import UiMessageStreamDecoder

Complaint = Callable[[Any], str]

ANSWER = (
    '0:"Hello "\n0:"wörld"\n'
    'b:{"toolCallId":"c","toolName":"look"}\nc:{"toolCallId":"c","argsTextDelta":"{}"}\na:{"toolCallId":"c","result":1}\n'
    'd:{"finishReason":"stop","usage":{"inputTokens":1,"outputTokens":2}}\n'
).encode()


def chunks_of(name: str, data: bytes) -> list[str]:
    decoder = find_format(name).decoder()
    return [stringify(chunk.to_json()) for chunk in [*decoder.feed(data), *decoder.close()]]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_can_be_asked_for(cli: Any, name: str) -> None:
    source = "plain-text" if name == "plain-text;v=0.3.15" else "data-stream"  # it refuses tool results
    done = cli("convert", "--from", source, "--to", name, input=ANSWER)
    assert (done.returncode, done.stderr) == (0, b"")
    back = cli("convert", "--from", name, "--to", "text", input=done.stdout)
    assert (back.returncode, back.stderr) == (0, b"")
    assert "Hello wörld" in back.stdout.decode() or source == "plain-text"


def test_a_chunk_goes_out_before_the_next_comes_in(cli: Any) -> None:
    running = cli.start("convert", "--from", "data-stream", "--to", "assistant-transport")
    running.stdin.write(b'0:"a"\n')
    running.stdin.flush()
    assert b"part-start" in running.stdout.readline()
    assert running.stdout.readline() == b"\n"
    assert b'"textDelta":"a"' in running.stdout.readline()
    running.stdin.close()
    assert running.stdout.read().endswith(b"data: [DONE]\n\n")
    assert running.wait() == 0


def test_broken_input_is_one_line_and_no_end(cli: Any, complaint: Complaint) -> None:
    done = cli("convert", "--from", "data-stream", "--to", "assistant-transport", input=b'0:"a"\n0:"b')
    assert done.returncode == 1
    assert b'"textDelta":"a"' in done.stdout
    assert b"[DONE]" not in done.stdout
    assert "[stream-cut]" in complaint(done)


def test_what_a_format_cannot_carry_is_refused(cli: Any, complaint: Complaint) -> None:
    done = cli("convert", "--from", "data-stream", "--to", "text;v=0.3.15", input=ANSWER)
    assert (done.returncode, done.stdout) == (2, "Hello wörld{}".encode())
    assert "[unsupported-chunk]" in complaint(done)
    done = cli("convert", "--from", "data-stream", "--to", "morse", input=ANSWER)
    assert (done.returncode, done.stdout) == (2, b"")
    assert "[unknown-format]" in complaint(done)


def test_what_is_left_out_is_told(cli: Any, complaint: Complaint) -> None:
    data = b'data: {"type":"zap"}\n\ndata: {"type":"step-start","path":[],"messageId":"m"}\n\ndata: [DONE]\n\n'
    done = cli("inspect", "--format", "assistant-transport", input=data)
    assert done.returncode == 0
    assert done.stdout.split() == [b"22", b"[]", b"step-start", b'"m"']
    assert "unknown-type" in complaint(done)


def test_the_longest_line_is_a_setting(cli: Any, complaint: Complaint) -> None:
    for command in (("convert", "--to", "text", "--from"), ("inspect", "--format")):
        done = cli(*command, "data-stream", input=b'0:"good"\n0:"' + b"x" * 100, MAX_LINE_BYTES="50")
        assert done.returncode == 1
        assert b"good" in done.stdout
        assert "TAILRACE_MAX_LINE_BYTES" in complaint(done)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("name", ["data-stream", "assistant-transport"])
def test_an_offset_is_where_the_chunks_bytes_begin(cli: Any, name: str, end: bytes) -> None:
    data = cli("convert", "--from", "data-stream", "--to", name, input=ANSWER).stdout.replace(b"\n", end)
    done = cli("inspect", "--format", name, input=data)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    at = next(int(line.split()[0]) for line in lines if "wörld" in line)
    assert data[at:].startswith(b"0:" if name == "data-stream" else b"data: ")
    assert "wörld".encode() in data[at:].split(end)[0]


def test_piped_chunks_are_those_of_the_decoder(cli: Any) -> None:
    done = cli("inspect", "--format", "data-stream", "--json", input=ANSWER)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == chunks_of("data-stream", ANSWER)


def test_states_are_shown_too(cli: Any) -> None:
    data = b'data: [{"type":"set","path":["a"],"value":1}]\n\n'
    done = cli("inspect", "--format", "object-stream", "--json", input=data)
    assert json.loads(done.stdout) == {
        "snapshot": {"a": 1},
        "operations": [{"type": "set", "path": ["a"], "value": 1}],
    }


def test_a_stored_stream_is_read_in_its_own_format(cli: Any, server: NatsServer, complaint: Complaint) -> None:
    at = ("--store", server.url)
    events = cli("convert", "--from", "data-stream", "--to", "assistant-transport", input=ANSWER).stdout
    assert cli("publish", "a", "--content-type", "text/event-stream", *at, input=events).returncode == 0
    done = cli("inspect", "a", "--json", *at)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == chunks_of("data-stream", ANSWER)
    assert cli("publish", "b", *at, input=ANSWER + b"0:").returncode == 0
    unnamed = cli("inspect", "b", *at)
    assert (unnamed.returncode, unnamed.stdout) == (2, b"")
    assert "application/octet-stream" in complaint(unnamed)
    cut = cli("inspect", "b", "--format", "data-stream", *at)
    assert cut.returncode == 1
    assert b"message-finish" in cut.stdout
    assert "[stream-cut]" in complaint(cut)
    missing = cli("inspect", "c", "--format", "data-stream", *at)
    assert missing.returncode == 2
    assert "[missing]" in complaint(missing)


def test_an_ending_that_is_not_done_is_told_after_the_chunks(
    cli: Any, server: NatsServer, complaint: Complaint
) -> None:
    at = ("--store", server.url)
    publisher = cli.start("publish", "a", "--content-type", "text/event-stream", *at)
    publisher.stdin.write(b'data: {"type":"step-start","path":[],"messageId":"m"}\n\n')
    publisher.stdin.flush()
    viewer = cli.start("inspect", "a", "--format", "assistant-transport", *at)
    while (got := viewer.stdout.readline()) == b"":  # it was there before the stream was
        assert viewer.wait() == 2
        viewer = cli.start("inspect", "a", "--format", "assistant-transport", *at)
    assert b"step-start" in got
    publisher.terminate()
    assert viewer.wait() == 1
    assert b"[interrupted]" in viewer.stderr.read()


def test_neither_a_stream_nor_a_format_is_a_wrong_call(cli: Any, complaint: Complaint) -> None:
    done = cli("inspect")
    assert done.returncode == 2
    assert "[usage]" in complaint(done)


@pytest.mark.parametrize(
    ("content_type", "headers", "found"),
    [
        ("text/event-stream", (("assistant-stream-format", "object-stream/v0"),), ObjectStreamDecoder),
        ("text/event-stream", (("x-vercel-ai-ui-message-stream", "v1"),), UiMessageStreamDecoder),
        ("text/plain; charset=utf-8", (("x-vercel-ai-data-stream", "v1"),), DataStreamDecoder),
    ],
)
def test_headers_that_a_claim_keeps_name_the_decoder(
    content_type: str, headers: tuple[tuple[str, str], ...], found: type
) -> None:
    info = StreamInfo("a", Status.DONE, content_type=content_type, headers=headers)
    decoder, is_events = decoder_of(load(env_file=None), None, info)
    assert isinstance(decoder, found)
    assert is_events == (found is not DataStreamDecoder)
