"""The nats-py client, with the parts replaced that this adapter cannot live with.

Theory. nats-py owns the socket, the handshake and the reconnecting. Ours are: sending, which never waits and keeps one
order; receiving, where a listener is a plain function called as soon as a message is parsed; and what a failure means.

Why each part is replaced (nats-py 2.16):

- `flush` writes its PING past commands that still wait for the flusher, so its PONG proves nothing; and a PONG for a
  PING that was given up ends the read loop for ever.
- A subscription costs a task and a queue, a message a parsed header block and two more turns of the loop, and a full
  queue loses messages.
- Commands that were not written yet are sent after a reconnect: here they are dropped, and their senders told.
- The first connect never gives up, a later one gives up on any error of the server's, and neither follows a server
  that comes back elsewhere.
- `tls://` does not insist on TLS.

Rules. Nothing here raises into the read loop. A listener must not block or await.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from nats import errors
from nats.aio.client import Client as NatsClient
from nats.aio.subscription import Subscription

from tailrace.jetstream.address import Address

Listener = Callable[[bytes, bytes | None, bytes], None]  # subject, header block, payload

RECONNECT_WAIT = 0.05
RECONNECT_WAIT_MAX = 1.0

# the library's own log lines repeat what our errors say: with no handler configured they would go to stderr
logging.getLogger("nats").addHandler(logging.NullHandler())
_log = logging.getLogger(__name__)


class Client(NatsClient):
    """``address`` says where to connect, anew at each attempt; ``lost`` hears that the connection broke, ``refused``
    what the server forbade (its words)."""

    def __init__(
        self, address: Callable[[], Address], lost: Callable[[], None], refused: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._address = address
        self._lost = lost
        self._refused = refused
        self._listeners: dict[int, Listener] = {}
        self._known: Address | None = None
        self._write_due = False
        self.given_up = False  # no attempt may follow

    # --- sending

    def send(self, command: bytes) -> None:
        """Queue one command of the protocol; what one turn of the loop queues is written at its end, at once."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._write_due:
            self._write_due = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._write_due = False
        if self._pending and self.is_connected and self._transport:
            commands, self._pending, self._pending_data_size = self._pending, [], 0
            self._transport.writelines(commands)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self.send(b"PING\r\n")

    async def _process_pong(self) -> None:
        self._pings_outstanding = 0
        if self._pongs and not (future := self._pongs.pop(0)).done():
            future.set_result(True)

    # --- receiving

    def listen(self, subject: str, listener: Listener) -> int:
        """Subscribe, and again after every reconnect. Gives the number to `unlisten` by."""
        self._sid += 1
        self._subs[self._sid] = Subscription(self, self._sid, subject)
        self._listeners[self._sid] = listener
        self.send(f"SUB {subject} {self._sid}\r\n".encode())
        return self._sid

    def unlisten(self, number: int) -> None:
        if self._listeners.pop(number, None) is not None:
            self._subs.pop(number, None)
            if self.is_connected:
                self.send(f"UNSUB {number}\r\n".encode())

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        listener = self._listeners.get(sid)
        if listener is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            listener(subject, headers, data)
        except Exception:  # noqa: BLE001  # in the read loop it would end the connection without a word
            _log.exception("A listener failed on %s", subject.decode("utf-8", "replace"))

    # --- connecting and failing

    async def _select_next_server(self) -> None:
        """One attempt, at the next server of a fresh pool; the callers come again."""
        if self.given_up:  # a cancellation may get lost in the library: python/cpython#86296
            raise asyncio.CancelledError
        try:
            self._abandon()
            await self._refresh()
            server = self._server_pool.pop(0)
            self._server_pool.append(server)
            self._current_server = server
            if server.last_attempt is not None and server.reconnects:
                wait = min(RECONNECT_WAIT * 2 ** min(server.reconnects, 10), RECONNECT_WAIT_MAX)
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            await self._connect_to_server(server)
        except (OSError, errors.Error):
            raise
        except Exception as error:  # whatever it is, the next attempt comes: only these types make the caller retry
            raise errors.Error(f"{type(error).__name__}: {error}") from error

    async def _refresh(self) -> None:
        try:
            address = self._address()
        except errors.Error:
            await asyncio.sleep(RECONNECT_WAIT_MAX * random.uniform(0.2, 0.4))
            raise
        if address == self._known:
            return
        self._known = address
        if self.is_closed:  # what a failed first attempt leaves behind
            self._status = Client.DISCONNECTED
        self.set_server_pool(list(address.servers))
        self.options.update(user=address.user, password=address.password, token=address.token)
        self._auth_configured = self._auth_configured or address.user is not None or address.token is not None

    def _abandon(self) -> None:
        """Drop what is left of the connection before: an attempt may have failed at any point."""
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self._cut()

    def _cut(self) -> None:
        """End the socket without waiting: a close waits for a peer that may never read or answer again."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except (OSError, errors.Error):
            raise
        except Exception as error:
            raise errors.Error(f"{type(error).__name__}: {error}") from error
        # the library upgrades to TLS without telling the stream, which then logs a warning at the peer's goodbye
        protocol = self._transport._io_writer.transport.get_protocol()  # type: ignore[union-attr]  # there is one now
        protocol._over_ssl = bool(self._server_info.get("tls_required"))
        if self.is_connecting:  # neither PONG nor -ERR: the server left, or said something else first
            if self._transport is None or self._transport.at_eof():
                self._abandon()
                raise errors.Error("the server closed the connection during the handshake")
            self._status = Client.CONNECTED

    def _connect_command(self) -> bytes:
        if self._known is not None and self._known.tls and not self._server_info.get("tls_required"):
            raise errors.Error("the URL says tls://, and the server offers no TLS")
        return super()._connect_command()

    async def _process_err(self, err_msg: str) -> None:
        if "permissions violation" in err_msg:
            self._refused(err_msg.strip("'"))
        else:  # among them expired credentials and a full server: both may pass
            await self._process_op_err(errors.Error(f"nats: {err_msg}"))

    async def _process_op_err(self, e: Exception) -> None:
        if not (self.is_closed or self.is_reconnecting):  # else the socket may be a new one already
            self._cut()
        await super()._process_op_err(e)
        if not self.is_connected:
            self._pending, self._pending_data_size = [], 0
            self._lost()

    async def abort(self) -> None:
        """Close, whatever state it is in, without waiting for the peer."""
        self.given_up = True
        try:
            async with asyncio.timeout(2.0):
                await self.close()
        except (OSError, errors.Error, AssertionError):  # the last: it never came as far as a server
            pass
        except asyncio.CancelledError:  # of a future that the reconnecting task shares, perhaps
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        finally:
            self._abandon()
