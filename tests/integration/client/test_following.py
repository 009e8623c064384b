"""The client's core over real sockets, against a server that breaks in every way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tailrace.client import GatewayError, Patience, Unreachable
from tailrace.client.exchange import run_path
from tailrace.errors import (
    CursorGone,
    OffsetOutOfRange,
    ProducerLost,
    RunConflict,
    StorageFull,
    StreamDeleted,
    StreamErrored,
    StreamNotFound,
    TailraceError,
    UnknownHandler,
)

ONE, TWO = "1-00000000000000aa", "2-00000000000000bb"


def plain(status: int, body: Any = None, headers: str = "") -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n{headers}Connection: close\r\n\r\n"
    return head.encode() + content


def problem(status: int, code: str, headers: str = "") -> bytes:
    return plain(status, {"code": code, "detail": f"it is {code}", "hint": "do something"}, headers)


def live(parts: Iterable[bytes], *, whole: bool, incarnation: str = ONE) -> bytes:
    """A chunked body; without its final chunk where the connection is cut."""
    head = f"HTTP/1.1 200 OK\r\nTailrace-Incarnation: {incarnation}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return head + body + (b"0\r\n\r\n" if whole else b"")


def status(state: str, size: int, incarnation: str | None = ONE, **more: Any) -> bytes:
    return plain(200, {"id": "a", "status": state, "bytes": size, "incarnation": incarnation, **more})


class Script:
    """A server that gives its answers in order, one a connection, and keeps the request lines and bodies."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = [line for line in head.lower().splitlines() if line.startswith("content-length:")]
        self.bodies.append(await reader.readexactly(int(length[0].split(":")[1])) if length else b"")
        self.requests.append(head.splitlines()[0].removesuffix(" HTTP/1.1"))
        if self.answers:
            writer.write(self.answers.pop(0))
            await writer.drain()
        writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield


async def follow(
    speech: Any,
    script: Script,
    patience: tuple[float, float] = (5, 20),
    notice: Callable[[str], None] = lambda event: None,
    start: bool = False,
    **more: Any,
) -> tuple[bytes, int, Exception | None]:
    """What a client got, how often it came back, and how it ended."""
    got, answer, failure = b"", None, None
    quick = Patience(*patience, first_pause=0.001, longest_pause=0.01)
    async with script.running(), speech.client(lambda: script.url, patience=quick, notice=notice) as client:
        try:
            answer = await speech.call(client.run, "echo", 1, id="a") if start else client.resume("a", **more)
            async for part in speech.each(answer.bytes()):
                got += part
        except TailraceError as error:
            failure = error
    return got, answer.reconnects if answer is not None else -1, failure


async def test_a_whole_body_is_the_stream(speech: Any) -> None:
    script = Script([live([b"ab", b"c"], whole=True)])
    got, reconnects, failure = await follow(speech, script)
    assert (got, failure, reconnects) == (b"abc", None, 0)
    assert script.requests == ["GET /v1/runs/a"]


async def test_a_broken_body_goes_on_at_the_next_byte_of_the_same_incarnation(speech: Any) -> None:
    events: list[str] = []
    script = Script([live([b"abc"], whole=False), status("streaming", 5), live([b"de"], whole=True)])
    got, reconnects, failure = await follow(speech, script, notice=events.append)
    assert (got, failure, reconnects) == (b"abcde", None, 1)
    assert script.requests[1:] == ["GET /v1/runs/a/status", f"GET /v1/runs/a?offset=3&incarnation={ONE}"]
    assert events == ["lost", "resumed"]


async def test_what_a_bad_ending_left_is_fetched_before_it_is_told(speech: Any) -> None:
    script = Script(
        [
            live([b"abc"], whole=False),
            status("error", 5, code="mine", message="it broke"),
            live([b"de"], whole=False),
            status("error", 5, code="mine", message="it broke"),
        ]
    )
    got, _, failure = await follow(speech, script)
    assert got == b"abcde"
    assert isinstance(failure, StreamErrored)
    assert (failure.code, failure.message) == ("mine", "it broke")


async def test_each_ending_is_its_own_error(speech: Any) -> None:
    script = Script([live([b"abc"], whole=False), status("producer-lost", 3, code="producer-lost", message="gone")])
    events: list[str] = []
    _, _, failure = await follow(speech, script, notice=events.append)
    assert isinstance(failure, ProducerLost)
    assert events == []  # nothing was lost: the stream has ended


async def test_a_break_behind_the_last_byte_of_a_done_stream_is_its_end(speech: Any) -> None:
    script = Script([live([b"abc"], whole=False), status("done", 3)])
    assert (await follow(speech, script))[0::2] == (b"abc", None)


async def test_an_end_below_the_position_is_asked_about_again(speech: Any) -> None:
    """A body that breaks, of a stream that is done and shorter than the offset: the next answer says so."""
    beyond = problem(416, "offset-out-of-range")
    script = Script([live([], whole=False), status("done", 3), beyond])
    _, _, failure = await follow(speech, script, offset=9)
    assert failure is not None
    assert failure.code == "offset-out-of-range"


def test_an_id_of_dots_is_not_folded_away() -> None:
    assert [httpx.URL(f"http://h{run_path(name, '/status')}").raw_path for name in ("a", ".", "..", "a..")] == [
        b"/v1/runs/a/status",
        b"/v1/runs/%2E/status",
        b"/v1/runs/%2E%2E/status",
        b"/v1/runs/a../status",
    ]


async def test_a_busy_gateway_is_asked_again(speech: Any) -> None:
    script = Script(
        [problem(503, "broker-unavailable"), problem(502, "x"), b"", problem(504, "y"), live([b"abc"], whole=True)]
    )
    assert (await follow(speech, script))[0::2] == (b"abc", None)
    assert len(script.requests) == 5


async def test_a_busy_gateway_is_asked_again_while_the_stream_is_followed(speech: Any) -> None:
    script = Script(
        [live([b"a"], whole=False), problem(503, "draining"), b"", problem(503, "draining"), live([b"bc"], whole=True)]
    )
    got, reconnects, failure = await follow(speech, script)
    assert (got, failure, reconnects) == (b"abc", None, 1)


async def test_a_question_is_asked_again_too(speech: Any) -> None:
    script = Script([problem(503, "broker-unavailable"), b"", status("done", 3)])
    quick = Patience(first_pause=0.001, longest_pause=0.01)
    async with script.running(), speech.client(script.url, patience=quick) as client:
        assert (await speech.call(client.status, "a")).bytes == 3
    assert script.requests == ["GET /v1/runs/a/status"] * 3


async def test_patience_ends_with_what_was_said_last(speech: Any) -> None:
    _, _, failure = await follow(speech, Script([problem(503, "no-workers")] * 100), patience=(0.2, 9))
    assert failure is not None
    assert failure.code == "no-workers"
    _, _, failure = await follow(speech, Script([]), patience=(0.2, 9))
    assert isinstance(failure, Unreachable)


async def test_a_start_is_repeated_until_it_is_answered_and_then_read(speech: Any) -> None:
    script = Script(
        [
            b"",
            problem(503, "no-workers"),
            live([b"ab"], whole=False),
            status("streaming", 2),
            live([b"c"], whole=True),
        ]
    )
    got, _, failure = await follow(speech, script, start=True)
    assert (got, failure) == (b"abc", None)
    assert [line.split()[0] for line in script.requests] == ["POST", "POST", "POST", "GET", "GET"]
    assert set(script.bodies[:3]) == {script.bodies[0]}


async def test_a_run_that_is_queued_is_read_and_not_started_again(speech: Any) -> None:
    script = Script([problem(504, "claim-timeout"), live([b"abc"], whole=True)])
    assert (await follow(speech, script, start=True))[0::2] == (b"abc", None)
    assert script.requests == ["POST /v1/runs", "GET /v1/runs/a"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (plain(404, {"error": "stream not found"}), StreamNotFound),
        (problem(410, "cursor-gone"), CursorGone),
        (problem(416, "offset-out-of-range"), OffsetOutOfRange),
        (problem(409, "run-conflict"), RunConflict),
        (problem(422, "unknown-handler"), UnknownHandler),
        (problem(507, "storage-full"), StorageFull),
        (problem(500, "internal"), GatewayError),
        (plain(404, {"error": "default backend"}), GatewayError),
        (plain(307, None, "Location: http://127.0.0.1:1/\r\n"), GatewayError),
        (plain(200, {"hello": "world"}), GatewayError),
        (live([b"abc"], whole=True).replace(b"\r\nT", b"\r\nContent-Encoding: gzip\r\nT", 1), GatewayError),
    ],
)
async def test_a_refusal_is_raised_at_once(speech: Any, answer: bytes, kind: type[TailraceError]) -> None:
    script = Script([answer])
    _, _, failure = await follow(speech, script, offset=3, incarnation=ONE)
    assert type(failure) is kind
    assert script.requests == [f"GET /v1/runs/a?offset=3&incarnation={ONE}"]


@pytest.mark.parametrize(
    "answers",
    [
        [plain(404, {"error": "stream not found"})],
        [status("streaming", 9, TWO)],
        [status("streaming", 9), problem(410, "cursor-gone")],
        [status("streaming", 9), plain(404, {"error": "stream not found"})],
        [status("streaming", 9), live([b"x"], whole=True, incarnation=TWO)],
    ],
)
async def test_a_stream_that_went_away_is_never_spliced(speech: Any, answers: list[bytes]) -> None:
    got, _, failure = await follow(speech, Script([live([b"abc"], whole=False), *answers]))
    assert got == b"abc"
    assert isinstance(failure, StreamDeleted)
