"""One connection to Redis that carries all requests of a process, in order.

Theory. Redis answers in the order of the requests, so requests are written as they come and their answers are handed
out by a reader: no pool, no waiting for a free connection. The client library opens the connection (login, TLS) and
reads the protocol; nothing of its retries is used.

Rules.

- A request that was written and not answered is unknown: `Unanswered`. One that could not be written was not sent:
  `BrokerUnavailable`. Nothing is sent twice here, but a script that the server does not know yet.
- A connection that breaks, is silent for a request's time, or turns out to be a replica's is dropped. The next request
  opens another; with Sentinel that one asks again who the master is. All who wait for a connection share one attempt.
- A request whose caller went away is answered all the same; the answer is dropped.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import Connection as Socket
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as SocketLost
from redis.exceptions import TimeoutError as SocketTimeout

from tailrace import _tls
from tailrace.errors import BrokerError, BrokerUnavailable
from tailrace.redis import refusals
from tailrace.redis.address import Address
from tailrace.redis.options import RedisOptions
from tailrace.redis.scripts import Script
from tailrace.tasks import end


class Unanswered(Exception):
    """The request was sent, and no answer came."""


class Connection:
    """``address`` and ``options`` say where; the connection is opened by the first request. Raises `BrokerRefused` for
    files that cannot be used."""

    def __init__(self, address: Address, options: RedisOptions) -> None:
        self.address = address
        self.options = options
        _tls.context(options.tls_ca, options.tls_cert, options.tls_key)  # the library finds out at every connect, late
        self._socket: Socket | None = None
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._opening: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._sentinel: Sentinel | None = None
        self._closed = False

    def __str__(self) -> str:
        return str(self.address)

    def another(self) -> Connection:
        """One more to the same server, for a request that blocks."""
        return Connection(self.address, self.options)

    # ---------------------------------------------------------------- requests

    async def call(self, *arguments: Any, timeout: float | None = None) -> Any:
        """The answer, as the server sent it. Raises `Unanswered`, `BrokerUnavailable`, and what `refusals.of` makes of
        an error. ``timeout`` in seconds (default: a request's)."""
        socket = await self._open()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        packed = socket.pack_command(*arguments)
        self._waiting.append(answer)  # nothing is awaited between here and the write
        try:
            async with asyncio.timeout(self.options.request_timeout if timeout is None else timeout):
                await self._send(socket, packed)
                return await answer
        except TimeoutError:
            self._drop(socket, TimeoutError())
            raise Unanswered(f"Redis at {self} did not answer in time") from None
        except RedisError as error:
            if isinstance(error, NoScriptError):
                raise
            if isinstance(error, ReadOnlyError) or "read only replica" in str(error):
                self._drop(socket, error)
            raise refusals.of(error, str(self)) from error

    async def _send(self, socket: Socket, packed: Sequence[bytes]) -> None:
        # not the library's own send: that connects anew, in the midst of answers, and closes where a caller goes away
        writer = socket._writer
        if writer is None:
            self._drop(socket, SocketLost("closed"))
            return
        if not self._unsent:  # what is asked for in one turn of the loop is one write
            asyncio.get_running_loop().call_soon(self._flush, socket)
        self._unsent += packed
        try:
            await writer.drain()
        except OSError as error:
            self._drop(socket, error)

    def _flush(self, socket: Socket) -> None:
        if self._socket is socket and socket._writer is not None:
            unsent, self._unsent = self._unsent, []
            socket._writer.writelines(unsent)

    async def run(self, script: Script, keys: Sequence[str], *arguments: Any) -> Any:
        """Run a script; the server gets its text when it does not know it."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self.call("EVAL", script.source, len(keys), *keys, *arguments)

    # ---------------------------------------------------------------- the connection

    async def _open(self) -> Socket:
        while (socket := self._socket) is None:
            if self._closed:
                raise BrokerUnavailable(f"The connection to Redis at {self} was closed")
            if self._opening is None:
                self._opening = asyncio.create_task(self._connect(), name="redis connect")
                self._opening.add_done_callback(self._opened)
            opening = self._opening
            try:
                await asyncio.shield(opening)
            except asyncio.CancelledError:
                if opening.cancelled() and not _is_cancelled():
                    raise BrokerUnavailable(f"The connection to Redis at {self} was closed") from None
                raise
        return socket

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()

    async def _connect(self) -> None:
        socket: Socket | None = None
        try:
            async with asyncio.timeout(self.options.connect_timeout):
                host, port = await self._where()
                socket = self._make(host, port)
                await socket.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            if socket is not None:
                await socket.disconnect(nowait=True)
            raise self._refusal(error) from error
        except BaseException:
            if socket is not None:
                await socket.disconnect(nowait=True)
            raise
        self._socket = socket
        self._reading = asyncio.create_task(self._read(socket), name="redis answers")

    def _refusal(self, error: BaseException) -> BrokerError:
        if isinstance(error, TimeoutError):
            tls = " (does it speak TLS?)" if self.address.tls else ""
            return BrokerUnavailable(
                f"Cannot reach Redis at {self}: no answer in {self.options.connect_timeout:g} s{tls}"
            )
        return refusals.connecting(error, str(self), tls=self.address.tls)

    async def _where(self) -> tuple[str, int]:
        if not self.address.service:
            return self.address.hosts[0]
        if self._sentinel is None:
            login = {"username": self.options.sentinel_user, "password": self.options.sentinel_password}
            self._sentinel = Sentinel(
                list(self.address.hosts),
                sentinel_kwargs=login | self._common() | ({"ssl": True} | self._files() if self.address.tls else {}),
                **self._common(),
            )  # type: ignore[no-untyped-call]
        host, port = await self._sentinel.discover_master(self.address.service)
        return host, int(port)

    def _common(self) -> dict[str, Any]:
        timeout = self.options.connect_timeout
        if self.address.service:  # sentinels are asked one after the other: all but one may be silent
            timeout /= len(self.address.hosts) + 1
        return {
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": timeout,
            "socket_timeout": timeout,
            "protocol": 2,
        }

    def _make(self, host: str, port: int) -> Socket:
        options = self.options
        settings = self._common() | {"socket_timeout": None, "host": host, "port": port, "db": self.address.database}
        settings |= {"username": options.user, "password": options.password}
        if not self.address.tls:
            return Socket(**settings)
        return SSLConnection(**self._files(), **settings)

    def _files(self) -> dict[str, Any]:
        """What TLS needs."""
        options = self.options
        return {
            "ssl_ca_certs": options.tls_ca,
            "ssl_certfile": options.tls_cert,
            "ssl_keyfile": options.tls_key,
        }

    async def _read(self, socket: Socket) -> None:
        error: BaseException = SocketLost("closed")
        try:
            while True:
                try:
                    answer = await socket.read_response(timeout=math.inf, disconnect_on_error=False)
                except (BusyLoadingError, AuthenticationError) as refusal:  # answers, though of the library's lost kind
                    self._answer(refusal)
                except (SocketLost, SocketTimeout):
                    raise
                except RedisError as refusal:
                    self._answer(refusal)
                else:
                    self._answer(answer)
        except (RedisError, OSError, ValueError, IndexError) as lost:
            error = lost
        finally:
            self._drop(socket, error)

    def _answer(self, answer: Any) -> None:
        waiting = self._waiting.popleft()
        if waiting.done():
            return
        if isinstance(answer, RedisError):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)

    def _drop(self, socket: Socket, error: BaseException) -> None:
        """This connection is over: what waits on it is unanswered."""
        if self._socket is not socket:
            return
        self._socket = None
        self._unsent = []
        if self._reading is not None and self._reading is not asyncio.current_task():
            self._reading.cancel()
        self._reading = None
        waiting, self._waiting = self._waiting, deque()
        for answer in waiting:
            if not answer.done():
                answer.set_exception(Unanswered(f"The connection to Redis at {self} broke: {error}"))
                answer.exception()
        _abort(socket)

    @property
    def peer(self) -> tuple[str, int] | None:
        """The server that it is connected to now."""
        return (self._socket.host, int(self._socket.port)) if self._socket is not None else None

    def drop(self) -> None:
        """Break the connection; the next request opens another."""
        if self._socket is not None:
            self._drop(self._socket, SocketLost("dropped"))

    async def close(self) -> None:
        """Idempotent."""
        self._closed = True
        if self._opening is not None:
            await end(self._opening)
        reading = self._reading
        if self._socket is not None:
            self._drop(self._socket, SocketLost("closed"))
        if reading is not None:
            await asyncio.wait({reading})
        if self._sentinel is not None:
            with suppress(RedisError, OSError):
                await self._sentinel.aclose()


def _is_cancelled() -> bool:
    """Whether somebody asked the current task to stop."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _abort(socket: Socket) -> None:
    """Let go of the socket at once, without a word: a server that hangs would keep a polite close waiting."""
    writer = socket._writer
    if writer is not None:
        writer.transport.abort()
        socket._reader = socket._writer = None
