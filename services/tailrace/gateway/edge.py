"""One connection of the HTTP edge: what a peer may hold, and how a response ends.

**Theory.** Whoever connects may be slow, stuck, gone or hostile, so everything that one peer can hold has a bound: the
time and size of a request's head, the time of its body, an idle connection, the bytes buffered for it, the time that
those bytes may stay unread. A streamed answer ends in one of three ways: *whole* (the app sends its last body part, and
only then is the final chunk written), *cut* (what was written is still delivered, then the connection closes without
the final chunk), *aborted* (everything buffered here and in the kernel is dropped and the connection is reset).

**Rules.**

- A cut or an abort belongs to one request: once its response is whole, both do nothing. Either one ends the app's side
  at once: a waiting ``send`` returns, ``receive`` says ``http.disconnect``, and nothing is logged.
- No closing waits for ever: what is not flushed ``linger_s`` seconds after a close is aborted.
- A refusal (400, 408, 431) is written only where no other response is under way, never into the middle of one. Behind
  it what still arrives is dropped for a moment, since closing with unread input would reset the refusal away.
- A time-out judges the peer, never us: while reading is paused here, or an earlier response is under way, it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import socket
import struct
from asyncio.events import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import httptools
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tailrace.errors import TailraceError
from tailrace.gateway import problems

ABORT, CUT, BUFFERED, WRITE = "tailrace.abort", "tailrace.cut", "tailrace.buffered", "tailrace.write"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds
_REFUSED_LINGER_S = 2.0
_MAX_PIPELINED = 64  # requests that wait behind the one that is answered


@lru_cache(maxsize=1)
def _framed(part: bytes) -> bytes:
    """``part`` as a chunk of a chunked body. Readers of one stream get the same part one after another."""
    return b"%x\r\n%b\r\n" % (len(part), part)


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """The bounds of the edge. ``_s`` is seconds, ``_bytes`` bytes.

    ``header_timeout_s``: from a connection's start, or a later request's first byte, until the headers are complete.
    ``body_timeout_s``: from there until the request's body is complete.
    ``idle_timeout_s``: how long a kept-alive connection waits for its next request.
    ``user_timeout_s``: how long a peer may leave sent bytes unacknowledged or its window shut (Linux), 0 for the
    kernel's own; with ``probe_idle_s``, the silence after which the kernel asks whether the peer still exists.
    ``linger_s``: how long a closing connection may take to flush.
    ``drain_timeout_s``: how long a stop waits for responses before it aborts them.
    ``max_head_bytes``: the URL and the headers of a request.
    ``send_buffer_bytes``: SO_SNDBUF of the listening socket, which connections inherit (Linux doubles it).
    ``write_high_bytes``, ``write_low_bytes``: above the first a ``send`` waits until the buffer fell to the second.
    """

    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    user_timeout_s: float = 30.0
    probe_idle_s: int = 60
    linger_s: float = 30.0
    drain_timeout_s: float = 30.0
    max_head_bytes: int = 32 * 1024
    send_buffer_bytes: int = 256 * 1024
    write_high_bytes: int = 256 * 1024
    write_low_bytes: int = 64 * 1024
    backlog: int = 2048


class EdgeConfig(uvicorn.Config):
    """uvicorn's configuration with the edge's beside it."""

    edge: EdgeSettings


class EdgeState(ServerState):
    """What all connections share."""

    draining = False


class _Phase(enum.Enum):
    IDLE = "no request has begun"
    HEAD = "a request's headers arrive"
    BODY = "its body arrives"
    CLOSING = "nothing more is read"


class EdgeProtocol(HttpToolsProtocol):
    """One connection. ``scope["extensions"]`` of each request holds three callables without arguments:
    `ABORT` and `CUT` end the response as the module's text says, `BUFFERED` gives the bytes that are written and not
    yet handed to the kernel. A fourth, `WRITE`, takes a part of a body that has begun and writes it without a turn of
    the loop; where that cannot be (the peer is behind, the body is over) it says False, and ``send`` is the way."""

    def __init__(
        self,
        config: EdgeConfig,
        server_state: EdgeState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._edge = config.edge
        self._state = server_state
        self._phase = _Phase.IDLE
        self._active: RequestResponseCycle | None = None  # the one whose response is under way, or was the last
        self._deadline: TimerHandle | None = None
        self._linger_timer: TimerHandle | None = None
        self._head_bytes = 0  # of this head (and trailer), in parts that the parser gave out
        self._unparsed = 0  # read since the last step forward; the parser itself keeps a part of any size
        self._stepped = False
        self._lost = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # narrower
        super().connection_made(transport)
        transport.set_write_buffer_limits(self._edge.write_high_bytes, self._edge.write_low_bytes)
        if self._state.draining:  # accepted while the listener closed
            self._close()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._enter(_Phase.CLOSING)
        self._unset_keepalive_if_required()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        self.pipeline.clear()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._linger(self._edge.linger_s)  # the transport closes now, once it has flushed

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._linger(self._edge.linger_s)

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def abort(self) -> None:
        """Reset the connection; what is buffered here and in the kernel is dropped."""
        if self._lost:
            return
        self._enter(_Phase.CLOSING)
        self._release()
        peer = self.transport.get_extra_info("socket")
        if peer is not None:
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def _close(self) -> None:
        """Close once what is written is flushed."""
        self._enter(_Phase.CLOSING)
        self._release()
        self.transport.close()
        self._linger(self._edge.linger_s)

    def _linger(self, seconds: float) -> None:
        if self._linger_timer is None and not self._lost:
            self._linger_timer = self.loop.call_later(seconds, self.abort)

    def _release(self) -> None:
        """End the app's side of a response that is not whole."""
        cycle = self._active
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            self.flow.resume_writing()

    # The response

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        cycle.scope["extensions"] = cast(
            Any,
            {
                ABORT: partial(self._end, cycle, self.abort),
                CUT: partial(self._end, cycle, self._close),
                BUFFERED: self.transport.get_write_buffer_size,
                WRITE: partial(self._write_part, cycle),
            },
        )
        task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self._responded)

    def _responded(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self.transport.is_closing():  # uvicorn closed it and waits for the flush
            self._linger(self._edge.linger_s)

    def _end(self, cycle: RequestResponseCycle, how: Callable[[], None]) -> None:
        if cycle is self._active and not cycle.response_complete:
            how()

    def _write_part(self, cycle: RequestResponseCycle, part: bytes) -> bool:
        if cycle is not self._active or cycle.disconnected or cycle.response_complete or self.flow.write_paused:
            return False
        if not cycle.response_started or not cycle.chunked_encoding:
            return False
        if part:  # an empty one would be the final chunk
            self.transport.write(_framed(part))
        return True

    # The request

    def data_received(self, data: bytes) -> None:
        if self._phase is _Phase.CLOSING:
            return
        self._unset_keepalive_if_required()
        self._stepped = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is spoken here; the request is answered as it is
        except httptools.HttpParserError:
            if self._head_bytes > self._edge.max_head_bytes:
                self._refuse_head()
            else:
                self._refuse(400, "invalid-http", "This is not an HTTP/1 request", "Send a well-formed request.")
            return
        self._unparsed = 0 if self._stepped else self._unparsed + len(data)
        if self._unparsed > self._edge.max_head_bytes:
            self._refuse_head()
        else:
            self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stepped = True
        self._head_bytes = 0
        self._phase = _Phase.HEAD  # the deadline that may run since the connection's start goes on

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests ahead of their answers")
        super().on_headers_complete()
        self._stepped = True
        self._enter(_Phase.BODY)

    def on_body(self, body: bytes) -> None:
        self._stepped = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._enter(_Phase.IDLE)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._edge.max_head_bytes:
            raise httptools.HttpParserError("head too large")  # stops the parser; refused where it was fed

    # The bounds of a request

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Have a deadline run wherever the peer is the one who must act."""
        idle = self._phase is _Phase.IDLE and (self._responding() or self.timeout_keep_alive_task is not None)
        if self._deadline is None and not idle and self._phase is not _Phase.CLOSING:
            seconds = self._edge.body_timeout_s if self._phase is _Phase.BODY else self._edge.header_timeout_s
            self._deadline = self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused or (self._phase is not _Phase.BODY and self._responding()):
            self._watch()
        elif self._phase is _Phase.IDLE:
            self._close()
        else:
            part = self._phase.name.lower()
            self._refuse(408, "request-timeout", f"The request's {part} did not arrive in time", "Send it again.")

    def _refuse_head(self) -> None:
        limit = self._edge.max_head_bytes
        text = f"The request's URL and headers are larger than {limit} bytes"
        self._refuse(431, "head-too-large", text, "Send a shorter URL, or fewer or shorter headers.")

    def _refuse(self, status: int, code: str, text: str, hint: str) -> None:
        answerable = self._answerable()
        self._unset_keepalive_if_required()
        if answerable:
            self.transport.write(self._refusal(status, problems.Problem(code, text, hint)))
        if not answerable or not self.transport.can_write_eof():
            self._close()
            return
        self._enter(_Phase.CLOSING)
        self._release()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._linger(_REFUSED_LINGER_S)

    def _answerable(self) -> bool:
        """Whether the next bytes that the peer expects begin the response to the request that is being read."""
        active = self._active
        if active is None or active.response_complete:
            return self._phase is not _Phase.BODY  # else it was answered before its body was complete
        return self._phase is _Phase.BODY and active is self.cycle and not active.response_started

    def _refusal(self, status: int, problem: TailraceError) -> bytes:
        content = json.dumps(problems.body(problem, status)).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(content)),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return b"%b%b\r\n%b" % (STATUS_LINE[status], lines, content)
