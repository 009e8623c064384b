"""The streaming response: a reader's entries into an HTTP body, from below the framework.

Theory: one loop a response. Each turn takes everything since the last send and sends it as one body message; then it
sleeps until the shared tail, the client's disconnect, a drain or the keepalive timer wakes it. Whoever wakes it finds
it asleep (there is a future to resolve) or sending (nothing to do: the loop looks at everything before it sleeps).

Rules:

- Where the server can write without a turn of the loop (``tailrace.write``), a wake of a sleeping response writes what
  there is and lets it sleep: this is what a thousand readers of one stream cost. Anything else wakes the loop.
- The framework returns this response without running it; `tailrace.gateway.app` runs it afterwards with the server's
  own ``send``, so no layer wraps a message.
- A client that takes nothing blocks the loop inside ``send``. What the stream grows by meanwhile is its lag; over the
  limit the connection is aborted. One that is merely slow meets `SlowReader` at its next take.
- A body that cannot say why it stops is cut: the connection closes without the final chunk. A clean end means ``done``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tailrace import logs
from tailrace.contracts import Reader
from tailrace.errors import OffsetOutOfRange, SlowReader, TailraceError
from tailrace.gateway.framing import Framing
from tailrace.gateway.live import Gateway
from tailrace.gateway.problems import Problem
from tailrace.model import Ending, Status

_log = logs.get("tailrace.gateway")
HANDOFF = "tailrace.handoff"
MAX_BODY = 256 * 1024
RawHeaders = Sequence[tuple[bytes, bytes]]


class ConnectionCut(Exception):
    """Raised out of the app where the server has no ``tailrace.cut``: a server then closes without the final chunk."""


def hand_off(scope: MutableMapping[str, Any], response: StreamResponse) -> None:
    """Leave ``response`` to `tailrace.gateway.app`, which runs it when the framework is done."""
    scope[HANDOFF].append(response)


class StreamResponse(Response):
    """A stream as a response. Whoever makes one hands its reader over: it is closed when the response ends."""

    def __init__(
        self,
        gateway: Gateway,
        reader: Reader,
        framing: Framing,
        headers: RawHeaders,
        *,
        finite: bool,
        with_body: bool,
        offset: int = 0,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = list(headers)
        self._gateway = gateway
        self._reader = reader
        self._framing = framing
        self._finite = finite  # has a length: a drain lets it come to its end
        self._offset = offset  # where the client stands: an ending below is not the end of what it has
        self._with_body = with_body
        self._sleep: asyncio.Future[None] | None = None
        self._sending = False
        self._gone = False
        self._drain = False
        self._sent_at = 0.0
        self._lag_from: int | None = None
        self._abort: Callable[[], object] | None = None
        self._write: Callable[[bytes], bool] | None = None
        self._held = b""  # taken from the reader, and not written yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hand_off(scope, self)

    def close(self) -> None:
        """Leave the stream. Idempotent."""
        self._reader.close()

    def drain(self) -> None:
        """Stop following the stream."""
        self._drain = True
        self._wake()

    async def run(self, scope: Scope, receive: Receive, send: Send, headers: RawHeaders = ()) -> None:
        """Send the response, with ``headers`` added, to its end, the client's or the gateway's."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": [*self.raw_headers, *headers]}
        await send(start)
        if not self._with_body:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        extensions = scope.get("extensions") or {}
        self._abort = extensions.get("tailrace.abort")
        if self._gateway.settings.flush_interval <= 0:
            self._write = extensions.get("tailrace.write")
        watch = asyncio.ensure_future(self._watch(receive))
        timer = self._keep_alive()
        self._gateway.responses.add(self)
        self._drain = self._gateway.draining
        self._reader.on_wake(self._grown)
        if self._framing.raw and self._write is not None:
            self._reader.on_bytes(self._sink)
        try:
            await self._pump(send, extensions.get("tailrace.cut"))
        finally:
            self._gateway.responses.discard(self)
            self._reader.on_wake(None)
            self._reader.on_bytes(None)
            watch.cancel()
            if timer is not None:
                timer.cancel()

    async def _pump(self, send: Send, cut: Callable[[], object] | None) -> None:
        reader, framing = self._reader, self._framing
        last: bytes | None = b""
        while not self._gone:
            try:
                body, self._held = self._held or framing.take(reader), b""
            except TailraceError as error:  # too slow, or the store is closing
                last = self._stop(error)
                break
            if body:
                await self._send(send, body)
            elif (ending := reader.ending) is not None:
                last = self._end(ending)
                break
            elif not self._drain:
                await self._woken(send)
            if self._drain and not self._finite and not self._gone:
                last = self._stop(Problem("draining", "This gateway is stopping", "Reconnect with the cursor."))
                break
        if last is not None or self._gone:
            await send({"type": "http.response.body", "body": last or b"", "more_body": False})
        elif cut is not None:
            cut()
        else:
            raise ConnectionCut

    async def _send(self, send: Send, body: bytes) -> None:
        self._sending = True
        try:
            for start in range(0, len(body), MAX_BODY):
                part = body if len(body) <= MAX_BODY else body[start : start + MAX_BODY]
                await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            self._sending, self._lag_from = False, None
        now = asyncio.get_running_loop().time()
        self._sent_at = now
        if (pause := self._gateway.settings.flush_interval) > 0:
            await self._pace(now + pause)

    def _end(self, ending: Ending) -> bytes | None:
        length = self._reader.info.bytes
        if ending.status is Status.DONE and length < self._offset:
            told = f"The stream ended at {length} bytes, below the offset {self._offset}"
            return self._stop(OffsetOutOfRange(told, length=length))
        last = self._framing.end(self._reader, ending)
        if last is None:
            _log.info("body-cut", reason=ending.code, **logs.of(self._reader.info))
        return last

    def _stop(self, error: TailraceError) -> bytes | None:
        _log.info("reader-stopped", reason=error.code, **logs.of(self._reader.info))
        return self._framing.stop(self._reader, error)

    # ------------------------------------------------------------ waking

    def _wake(self) -> None:
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    def _sink(self, part: bytes) -> bool:
        """Write new bytes at once, as they are; False where the loop has something to do first."""
        sleep, write = self._sleep, self._write
        return sleep is not None and not sleep.done() and write is not None and write(part)

    def _grown(self) -> None:
        """The stream has more, or its ending."""
        if self._sending:
            self._check_lag()
        elif self._sleep is not None and not self._sleep.done() and not self._write_through():
            self._sleep.set_result(None)

    def _write_through(self) -> bool:
        """Write what there is at once; False where the loop must wake, for whatever reason."""
        if self._write is None:
            return False
        try:
            while body := self._framing.take(self._reader):  # a take may give a part of what there is
                if not self._write(body):
                    self._held = body
                    return False
        except TailraceError:
            return False  # the loop meets it again
        if self._framing.keepalive is not None:
            self._sent_at = asyncio.get_running_loop().time()
        return self._reader.ending is None

    def _check_lag(self) -> None:
        grown = self._reader.info.bytes
        if self._lag_from is None:
            self._lag_from = grown
        elif grown - self._lag_from > self._gateway.store.limits.max_reader_lag_bytes and self._abort is not None:
            _log.info("reader-aborted", reason=SlowReader.code, **logs.of(self._reader.info))
            abort, self._abort, self._gone = self._abort, None, True
            abort()

    async def _woken(self, send: Send) -> None:
        self._sleep = asyncio.get_running_loop().create_future()
        try:
            await self._sleep
        finally:
            self._sleep = None
        keepalive = self._framing.keepalive
        if keepalive is not None and self._silent_for() >= self._gateway.settings.keepalive_interval:
            await self._send(send, keepalive)

    async def _pace(self, until: float) -> None:
        """Let chunks gather until then."""
        loop = asyncio.get_running_loop()
        gather = loop.create_future()
        timer = loop.call_at(until, gather.set_result, None)
        try:
            await gather
        finally:
            timer.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._wake()

    def _silent_for(self) -> float:
        return asyncio.get_running_loop().time() - self._sent_at

    def _keep_alive(self) -> Ticker | None:
        self._sent_at = asyncio.get_running_loop().time()
        if self._framing.keepalive is None:
            return None
        return Ticker(self._gateway.settings.keepalive_interval, self._silent_for, self._wake)


class Ticker:
    """Calls ``due`` whenever there was silence for ``interval`` seconds; one timer, armed anew only when it fires."""

    def __init__(self, interval: float, silence: Callable[[], float], due: Callable[[], None]) -> None:
        self._interval = interval
        self._silence = silence
        self._due = due
        self._timer = asyncio.get_running_loop().call_later(interval, self._tick)

    def _tick(self) -> None:
        left = self._interval - self._silence()
        if left <= 0:
            self._due()
        self._timer = asyncio.get_running_loop().call_later(left if left > 0 else self._interval, self._tick)

    def cancel(self) -> None:
        self._timer.cancel()


def raw_headers(pairs: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI wants them."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
