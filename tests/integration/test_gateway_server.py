"""The HTTP edge over real sockets: how bodies end, what a peer may hold, and how the server stops."""

import asyncio
import contextlib
import functools
import inspect
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog

if sys.platform == "win32":
    pytest.skip("needs POSIX signals and uvloop", allow_module_level=True)

import uvloop

from tailrace.errors import TailraceError
from tailrace.gateway.server import (
    ABORT,
    BUFFERED,
    CUT,
    EdgeProtocol,
    EdgeSettings,
    GatewayServer,
    make_server,
    serve,
    start,
    started,
)

Test = Callable[..., Coroutine[Any, Any, None]]
BIG = b"x" * (64 * 1024)


def on_both_loops(test: Test) -> Callable[..., None]:
    """uvloop is what runs; asyncio's own transport must mean the same."""

    @functools.wraps(test)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test(**arguments)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(bounded())

    signature = inspect.signature(test)
    factory = inspect.Parameter("loop_factory", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), factory])  # type: ignore[attr-defined]
    del run.__wrapped__
    loops = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    both: Callable[..., None] = pytest.mark.parametrize("loop_factory", list(loops.values()), ids=list(loops))(run)
    return both


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Asserts that neither the server nor the loop logged a warning or an error."""
    yield
    logged = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert logged == []


class App:
    """A raw ASGI app; each path is a way to answer. What the tests wait for are its events."""

    def __init__(self) -> None:
        self.drained = asyncio.Event()
        self.drains = 0
        self.streaming = asyncio.Event()
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()
        self.blocked = asyncio.Event()
        self.scopes: list[Any] = []
        self.log: list[str] = []

    def drain(self) -> None:
        self.drains += 1
        self.drained.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                kind = (await receive())["type"]
                self.log.append(kind)
                await send({"type": kind + ".complete"})
            return
        self.scopes.append(scope)
        try:
            await getattr(self, scope["path"].strip("/"))(scope, receive, send)
        finally:
            self.left.set()

    async def _begin(self, send: Any, *headers: tuple[bytes, bytes]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})

    async def _part(self, send: Any, body: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})

    async def whole(self, scope: Any, receive: Any, send: Any) -> None:
        await self._begin(send)
        for part in (b"one ", b"two ", b"three"):
            await self._part(send, part)
        await self._part(send, b"", more=False)

    async def cut(self, scope: Any, receive: Any, send: Any) -> None:
        await self._begin(send)
        await self._part(send, b"begun ")
        await self._part(send, BIG)
        scope["extensions"][CUT]()
        assert (await receive())["type"] == "http.disconnect"
        await self._part(send, b"never", more=False)
        scope["extensions"][CUT]()

    async def cut_before_start(self, scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"][CUT]()

    async def cut_when_whole(self, scope: Any, receive: Any, send: Any) -> None:
        await self.whole(scope, receive, send)
        scope["extensions"][CUT]()
        scope["extensions"][ABORT]()

    async def live(self, scope: Any, receive: Any, send: Any) -> None:
        """A live reader: it sits there until the drain cuts it or the client leaves."""
        await self._begin(send)
        await self._part(send, b"live")
        self.streaming.set()
        gone = asyncio.ensure_future(self._gone(receive))
        drained = asyncio.ensure_future(self.drained.wait())
        await asyncio.wait((gone, drained), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        drained.cancel()
        scope["extensions"][CUT]()

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def deaf(self, scope: Any, receive: Any, send: Any) -> None:
        """A live reader that no drain reaches."""
        await self._begin(send)
        await self._part(send, b"deaf")
        self.streaming.set()
        await self._gone(receive)

    async def flood(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends to a peer that does not read, until a send waits."""
        await self._begin(send)
        gone = asyncio.ensure_future(self._gone(receive))
        while not gone.done():
            asyncio.get_running_loop().call_soon(self._look, scope)
            await self._part(send, BIG)

    def _look(self, scope: Any) -> None:
        if scope["extensions"][BUFFERED]() > 256 * 1024:
            self.blocked.set()

    async def body(self, scope: Any, receive: Any, send: Any) -> None:
        content = b""
        while (message := await receive())["type"] == "http.request":
            content += message["body"]
            if not message["more_body"]:
                await self._begin(send)
                await self._part(send, b"%d" % len(content), more=False)
                return

    async def gated(self, scope: Any, receive: Any, send: Any) -> None:
        await self._begin(send)
        await self._part(send, b"begun ")
        self.streaming.set()
        await self.go_on.wait()
        await self._part(send, b"ended", more=False)

    async def broken(self, scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a secret of the app")


@asynccontextmanager
async def running(app: App, **bounds: Any) -> AsyncIterator[GatewayServer]:
    server = make_server(app, settings=EdgeSettings(**bounds), on_drain=app.drain, install_signals=False)
    async with started(server):
        yield server


@asynccontextmanager
async def connect(server: GatewayServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.bound_port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def url(server: GatewayServer, path: str) -> str:
    return f"http://127.0.0.1:{server.bound_port}{path}"


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: test", *headers, "", "")).encode()


async def to_end(reader: asyncio.StreamReader) -> bytes:
    """Everything until the connection ends, in whichever way."""
    content = b""
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(65536):
            content += part
    return content


def read_all(client: socket.socket) -> None:
    while client.recv(65536):
        pass


def problem(answer: bytes) -> tuple[int, str]:
    head, body = answer.split(b"\r\n\r\n", 1)
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["code"]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@contextlib.contextmanager
def stuck_client(server: GatewayServer, path: str) -> Iterator[socket.socket]:
    """Asks and never reads."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.bound_port))
        client.sendall(request(path))
        yield client


# ---------------------------------------------------------------- how a body ends


@on_both_loops
async def test_a_whole_body_streams_and_the_connection_serves_again(quiet: None) -> None:
    app = App()
    async with running(app) as server, httpx.AsyncClient(timeout=60) as client:
        for path in ("/whole", "/cut_when_whole", "/whole", "/whole"):
            answer = await client.get(url(server, path))
            assert (answer.status_code, answer.content) == (200, b"one two three")
            assert "server" not in answer.headers
        assert len({scope["client"] for scope in app.scopes}) == 1
        assert app.scopes[0]["extensions"][BUFFERED]() == 0
    assert app.log == ["lifespan.startup", "lifespan.shutdown"]


@on_both_loops
async def test_pipelined_requests_are_answered_in_order(quiet: None) -> None:
    async with running(App()) as server, connect(server) as (reader, writer):
        upload = request("/body", "Content-Length: 3", method="POST") + b"abc"
        writer.write(request("/whole") + upload + request("/whole", "Connection: close"))
        answer = await to_end(reader)
        assert answer.count(b"HTTP/1.1 200 OK") == 3
        assert answer.count(b"0\r\n\r\n") == 3
        assert answer.index(b"three") < answer.index(b"1\r\n3\r\n") < answer.rindex(b"three")


@on_both_loops
async def test_a_cut_delivers_what_was_written_and_no_final_chunk(quiet: None) -> None:
    app = App()
    async with running(app) as server:
        async with connect(server) as (reader, writer):
            writer.write(request("/cut"))
            answer = await reader.read()  # a proper end of file: no reset
            assert answer.endswith(BIG + b"\r\n")
            assert b"never" not in answer
        async with httpx.AsyncClient(timeout=60) as client:
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                await client.get(url(server, "/cut"))
            with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
                await client.get(url(server, "/cut_before_start"))


@on_both_loops
async def test_an_abort_frees_a_stuck_clients_buffer(quiet: None) -> None:
    app = App()
    async with running(app) as server:
        with stuck_client(server, "/flood") as client:
            await app.blocked.wait()
            extensions = app.scopes[0]["extensions"]
            assert extensions[BUFFERED]() < 512 * 1024  # bounded, since sends wait
            assert not app.left.is_set()
            extensions[ABORT]()
            await app.left.wait()
            await until(lambda: not server.server_state.connections)
            assert extensions[BUFFERED]() == 0
            client.setblocking(True)
            client.settimeout(30)
            with pytest.raises(ConnectionResetError):  # the kernel's buffer is gone too
                read_all(client)


@on_both_loops
async def test_a_cut_that_a_stuck_client_never_takes_is_aborted(quiet: None) -> None:
    app = App()
    async with running(app, linger_s=0.2) as server:
        with stuck_client(server, "/flood"):
            await app.blocked.wait()
            app.scopes[0]["extensions"][CUT]()
            await app.left.wait()
            await until(lambda: not server.server_state.connections)


@on_both_loops
async def test_a_stuck_client_that_half_closes_is_aborted(quiet: None) -> None:
    app = App()
    async with running(app, linger_s=0.2) as server:
        with stuck_client(server, "/flood") as client:
            await app.blocked.wait()
            client.shutdown(socket.SHUT_WR)
            await app.left.wait()
            await until(lambda: not server.server_state.connections)


# ---------------------------------------------------------------- what a peer may hold


@on_both_loops
@pytest.mark.parametrize("sent", [b"G", b"GET /whole HTTP/1.1\r\nHost: te", request("/whole")[:-2]])
async def test_slow_headers_get_408(sent: bytes, quiet: None) -> None:
    async with running(App(), header_timeout_s=1.0) as server, connect(server) as (reader, writer):
        writer.write(sent)
        assert problem(await to_end(reader)) == (408, "request-timeout")


@on_both_loops
async def test_slow_headers_of_a_later_request_get_408(quiet: None) -> None:
    async with running(App(), header_timeout_s=1.0) as server, connect(server) as (reader, writer):
        writer.write(request("/whole"))
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"GET /wh")
        assert problem(await to_end(reader)) == (408, "request-timeout")


@on_both_loops
@pytest.mark.parametrize("sent", [b"", b"\r\n"])
async def test_a_connection_that_asks_nothing_is_closed(sent: bytes, quiet: None) -> None:
    async with running(App(), header_timeout_s=1.0) as server:
        async with connect(server) as (reader, writer):
            writer.write(sent)
            assert await to_end(reader) == b""
        async with connect(server) as (reader, writer):
            writer.write(request("/whole"))
            await reader.readuntil(b"0\r\n\r\n")
            writer.write(b"\r\n")  # ends the idle time-out and begins no request
            assert await to_end(reader) == b""


@on_both_loops
async def test_an_idle_kept_alive_connection_is_closed(quiet: None) -> None:
    async with running(App(), idle_timeout_s=0.2) as server, connect(server) as (reader, writer):
        writer.write(request("/whole"))
        assert (await to_end(reader)).endswith(b"0\r\n\r\n")


@on_both_loops
@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
async def test_a_slow_body_gets_408_and_the_app_a_disconnect(framing: str, quiet: None) -> None:
    app = App()
    async with running(app, body_timeout_s=0.2) as server, connect(server) as (reader, writer):
        writer.write(request("/body", framing, method="POST") + b"3\r\n")
        assert problem(await to_end(reader)) == (408, "request-timeout")
        await app.left.wait()


@on_both_loops
async def test_a_body_that_stays_away_behind_its_answer_closes_without_another(quiet: None) -> None:
    async with running(App(), body_timeout_s=0.2) as server, connect(server) as (reader, writer):
        writer.write(request("/whole", "Content-Length: 10", method="POST"))
        answer = await to_end(reader)
        assert answer.endswith(b"0\r\n\r\n")
        assert answer.count(b"HTTP/1.1") == 1


@on_both_loops
async def test_live_readers_and_half_a_later_request_outlive_the_timeouts(quiet: None) -> None:
    app = App()
    bounds = {"header_timeout_s": 0.5, "body_timeout_s": 0.5, "idle_timeout_s": 0.5}
    async with running(app, **bounds) as server, connect(server) as (reader, writer):
        writer.write(request("/gated") + b"GET /who")
        await app.streaming.wait()
        for _ in range(2):
            async with connect(server) as (other, _writer):
                await to_end(other)  # these began later, and met their time-out
        app.go_on.set()
        first, _, second = (await to_end(reader)).partition(b"0\r\n\r\n")
        assert b"ended" in first
        assert problem(second) == (408, "request-timeout")


@on_both_loops
@pytest.mark.parametrize(
    "head",
    [
        request("/whole", "X-Long: " + "v" * 5000),
        request("/whole?" + "q" * 5000),
        request("/whole", *(f"X-{number}: {'v' * 50}" for number in range(100))),
        b"GET /whole HTTP/1.1\r\nX-Endless: " + b"v" * 300_000,
        b"GET /" + b"u" * 300_000,
    ],
    ids=["value", "url", "many", "endless value", "endless url"],
)
async def test_a_large_head_gets_431(head: bytes, quiet: None) -> None:
    async with running(App(), max_head_bytes=4096) as server, connect(server) as (reader, writer):
        writer.write(head)
        assert problem(await to_end(reader)) == (431, "head-too-large")


@on_both_loops
async def test_a_large_head_in_small_pieces_gets_431(quiet: None) -> None:
    async with running(App(), max_head_bytes=4096) as server, connect(server) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(b"GET /whole HTTP/1.1\r\nX-Endless: ")
            answer = asyncio.ensure_future(to_end(reader))
            while not answer.done():
                writer.write(b"v" * 100)
                await writer.drain()
                await asyncio.sleep(0)
        assert problem(await answer) == (431, "head-too-large")


@on_both_loops
@pytest.mark.parametrize("rest", [b"0\r\nX-Endless: ", b"5;extension="])
async def test_what_lies_beside_a_body_is_bounded_too(rest: bytes, quiet: None) -> None:
    async with running(App(), max_head_bytes=4096) as server, connect(server) as (reader, writer):
        writer.write(request("/body", "Transfer-Encoding: chunked", method="POST") + rest + b"v" * 600_000)
        assert problem(await to_end(reader)) == (431, "head-too-large")


@on_both_loops
async def test_a_body_in_many_small_reads_is_not_taken_for_a_head(quiet: None) -> None:
    async with running(App(), max_head_bytes=64) as server, connect(server) as (reader, writer):
        writer.write(request("/body", "Transfer-Encoding: chunked", method="POST"))
        for part in [b"1\r\n", b"b\r\n"] * 50 + [b"0\r\n\r\n"]:
            writer.write(part)
            await asyncio.sleep(0.001)
        assert b"\r\n50\r\n" in await reader.readuntil(b"0\r\n\r\n")


@on_both_loops
async def test_requests_sent_ahead_are_bounded(quiet: None) -> None:
    app = App()
    async with running(app) as server, connect(server) as (reader, writer):
        writer.write(request("/live") + request("/whole") * 1000)
        assert b"three" not in await to_end(reader)
        await until(lambda: not server.server_state.tasks)


@on_both_loops
async def test_a_head_within_the_limit_follows_a_large_body(quiet: None) -> None:
    """The body's bytes are not counted as the next head's."""
    async with running(App(), max_head_bytes=4096) as server, connect(server) as (reader, writer):
        upload = request("/body", "Content-Length: 200000", method="POST") + b"b" * 200_000
        writer.write(upload + request("/whole")[:-2])
        await reader.readuntil(b"6\r\n200000\r\n0\r\n\r\n")
        writer.write(b"Connection: close\r\n\r\n")
        assert b"three" in await to_end(reader)


@on_both_loops
async def test_what_is_not_http_gets_400_but_never_within_a_response(quiet: None) -> None:
    app = App()
    async with running(app) as server:
        async with connect(server) as (reader, writer):
            writer.write(b"\x16\x03\x01 hello\r\n\r\n")
            assert problem(await to_end(reader)) == (400, "invalid-http")
        async with connect(server) as (reader, writer):
            writer.write(request("/body", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n")
            assert problem(await to_end(reader)) == (400, "invalid-http")
        async with connect(server) as (reader, writer):
            writer.write(request("/live"))
            await app.streaming.wait()
            writer.write(b"\x16\x03\x01 hello\r\n\r\n")
            answer = await to_end(reader)
            assert answer.endswith(b"4\r\nlive\r\n")
            assert b"400" not in answer


@on_both_loops
async def test_an_upgrade_is_answered_as_plain_http(quiet: None) -> None:
    async with running(App()) as server, connect(server) as (reader, writer):
        writer.write(request("/whole", "Connection: Upgrade", "Upgrade: websocket"))
        assert b"200 OK" in await reader.readuntil(b"0\r\n\r\n")


@on_both_loops
async def test_a_failing_app_shows_its_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with running(App()) as server, httpx.AsyncClient(timeout=60) as client:
        answer = await client.get(url(server, "/broken"))
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    logged = [record for record in caplog.records if record.exc_info]
    assert [record.name for record in logged] == ["tailrace.gateway"]  # once, under our name


@on_both_loops
async def test_connections_inherit_the_listeners_options(quiet: None) -> None:
    app = App()
    bounds = {"send_buffer_bytes": 70_000, "user_timeout_s": 12.5, "write_high_bytes": 9000, "write_low_bytes": 3000}
    async with running(app, **bounds) as server, connect(server) as (_, writer):
        writer.write(request("/live"))
        await app.streaming.wait()
        (connection,) = server.server_state.connections
        assert isinstance(connection, EdgeProtocol)
        peer = connection.transport.get_extra_info("socket")
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in (70_000, 140_000)
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if sys.platform == "linux":
            assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_500
        assert connection.transport.get_write_buffer_limits() == (3000, 9000)


# ---------------------------------------------------------------- how the server stops


@on_both_loops
async def test_a_drain_ends_live_readers_and_the_server(quiet: None) -> None:
    app = App()
    async with running(app, drain_timeout_s=3600) as server:
        async with connect(server) as (reader, writer), connect(server) as (idle, _):
            writer.write(request("/live"))
            await app.streaming.wait()
            await asyncio.gather(server.drain_and_stop(), server.drain_and_stop())
            assert (await reader.read()).endswith(b"4\r\nlive\r\n")
            assert await to_end(idle) == b""
        assert app.drains == 1
        assert not server.ready.is_set()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.bound_port)
    assert app.log == ["lifespan.startup", "lifespan.shutdown"]
    assert app.drains == 1


@on_both_loops
async def test_a_drain_lets_a_response_come_to_its_end(quiet: None) -> None:
    app = App()
    async with running(app, drain_timeout_s=3600) as server, connect(server) as (reader, writer):
        writer.write(request("/gated"))
        await app.streaming.wait()
        stop = asyncio.ensure_future(server.drain_and_stop())
        await app.drained.wait()
        app.go_on.set()
        assert (await to_end(reader)).endswith(b"ended\r\n0\r\n\r\n")
        await stop


@on_both_loops
@pytest.mark.parametrize("path", ["/deaf", "/flood"])
async def test_a_drain_aborts_what_the_app_leaves(path: str, quiet: None) -> None:
    app = App()
    async with running(app, drain_timeout_s=0.2) as server:
        with stuck_client(server, path):
            await (app.blocked if path == "/flood" else app.streaming).wait()
            await server.drain_and_stop()
            assert app.left.is_set()
            assert not server.server_state.connections


@on_both_loops
async def test_a_stop_goes_on_when_on_drain_fails(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.reset_defaults()  # as where this is embedded

    def fail() -> None:
        local = "".join(("a ", "key"))
        raise RuntimeError(f"on_drain {len(local)}")

    server = make_server(App(), on_drain=fail, install_signals=False)
    await server.drain_and_stop()  # never served: nothing to stop
    task = await start(server)
    await server.drain_and_stop()
    await task
    logged = capsys.readouterr().out
    assert "RuntimeError: on_drain 5" in logged
    assert "a key" not in logged


@on_both_loops
async def test_a_cancelled_server_leaves_nothing(quiet: None) -> None:
    app = App()
    server = make_server(app, on_drain=app.drain, install_signals=False)
    task = asyncio.create_task(serve(server))
    await server.ready.wait()
    async with connect(server) as (reader, writer):
        writer.write(request("/deaf"))
        await app.streaming.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await to_end(reader)
        await app.left.wait()
    assert (app.drains, app.log) == (1, ["lifespan.startup", "lifespan.shutdown"])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.bound_port)
    await server.drain_and_stop()


@on_both_loops
async def test_a_taken_port_is_said_in_one_line(quiet: None) -> None:
    async with running(App()) as server:
        second = make_server(App(), port=server.bound_port, on_drain=lambda: None, install_signals=False)
        with pytest.raises(TailraceError, match="Cannot listen on") as caught:
            await start(second)
        assert caught.value.code == "cannot-listen"


@on_both_loops
async def test_a_bound_socket_that_cannot_listen_is_said_too(quiet: None) -> None:
    app = App()
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0) if each is first else first.getsockname())
        first.listen()
        server = make_server(app, sockets=[second], on_drain=app.drain, install_signals=False)
        with pytest.raises(TailraceError, match="Cannot listen on"):
            await start(server)
    assert app.log == []


@on_both_loops
async def test_an_app_that_fails_to_start_is_an_error_of_ours() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("no broker")

    server = make_server(app, on_drain=lambda: None, install_signals=False)
    with pytest.raises(TailraceError) as caught:
        await start(server)
    assert caught.value.code == "startup-failed"


@on_both_loops
async def test_a_given_socket_is_served(quiet: None) -> None:
    app = App()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = make_server(app, sockets=[listener], on_drain=app.drain, install_signals=False)
    task = await start(server)
    async with httpx.AsyncClient(timeout=60) as client:
        assert server.bound_port == listener.getsockname()[1]
        assert (await client.get(url(server, "/whole"))).content == b"one two three"
    await server.drain_and_stop()
    await task
    assert listener.fileno() == -1


@on_both_loops
async def test_signals_drain_once_and_then_force(quiet: None) -> None:
    app = App()
    async with running(app, drain_timeout_s=3600) as server, connect(server) as (_, writer):
        writer.write(request("/deaf"))
        await app.streaming.wait()
        server.handle_exit(signal.SIGTERM, None)
        await app.drained.wait()
        assert not app.left.is_set()
        server.handle_exit(signal.SIGINT, None)
        await server.drain_and_stop()
        assert app.left.is_set()
        assert app.drains == 1


CHILD = """
import asyncio, sys, uvloop
from tailrace.gateway.server import CUT, EdgeSettings, make_server, serve

async def main():
    drained = asyncio.Event()
    def drain():
        print("drain", file=sys.stderr, flush=True)
        drained.set()
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await send({"type": (await receive())["type"] + ".complete"})
            await send({"type": (await receive())["type"] + ".complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"live", "more_body": True})
        if scope["path"] == "/live":
            await drained.wait()
            scope["extensions"][CUT]()
        else:
            while (await receive())["type"] != "http.disconnect":
                pass
    server = make_server(app, on_drain=drain, settings=EdgeSettings(drain_timeout_s=3600))
    task = asyncio.create_task(serve(server))
    await server.ready.wait()
    print("port", server.bound_port, flush=True)
    await task

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


@asynccontextmanager
async def child() -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A server in a process of its own, and its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ
    )
    try:
        assert process.stdout is not None
        line = b""
        while not line.startswith(b"port "):
            line = await process.stdout.readline()
            assert line, (await process.communicate())[1].decode()
        yield process, int(line.split()[1])
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def live_reader(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(path))
    await reader.readuntil(b"4\r\nlive\r\n")
    return reader, writer


async def ended(pairs: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> list[bytes]:
    rest = [await to_end(reader) for reader, _ in pairs]
    for _, writer in pairs:
        writer.close()
    return rest


async def test_sigterm_ends_a_process_with_live_readers_cleanly() -> None:
    async with asyncio.timeout(60), child() as (process, port):
        pairs = [await live_reader(port, "/live") for _ in range(10)]
        process.send_signal(signal.SIGTERM)
        assert await ended(pairs) == [b""] * 10  # cut: no final chunk
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
        assert said.decode().count("drain") == 1
        assert "Traceback" not in said.decode()


async def test_a_second_signal_ends_a_process_that_cannot_drain() -> None:
    async with asyncio.timeout(60), child() as (process, port):
        pairs = [await live_reader(port, "/deaf") for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert await process.stderr.readline() == b"drain\n"
        process.send_signal(signal.SIGTERM)
        assert await ended(pairs) == [b""] * 3
        _, said = await process.communicate()
        assert process.returncode == 0
        assert "Traceback" not in said.decode()
