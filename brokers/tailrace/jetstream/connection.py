"""One connection to NATS: requests, batches and live subjects, with every failure as one of ours.

Theory. All answers come to one inbox, each request under a number of its own; a reply is a header block and a payload,
parsed by whoever asked. A request ends in exactly one way: an answer, `Unanswered` (it was written, and its fate is not
known), or a `BrokerError` (it was never written, or the server refused it).

Rules. When the connection breaks, everything in flight is unanswered at once, and what was not yet written is dropped.
After a reconnect, with every live subject subscribed again, each follower hears `uncertain`. While disconnected nothing
is queued: a request fails with `BrokerUnavailable`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from nats import errors

from tailrace._clock import Clock
from tailrace.errors import BrokerError, BrokerFailed, BrokerUnavailable, BrokerUnsuitable
from tailrace.jetstream import refusals
from tailrace.jetstream.address import Address, parse
from tailrace.jetstream.client import Client, Listener
from tailrace.jetstream.options import JetStreamOptions
from tailrace.jetstream.security import check_keys, tls_context
from tailrace.jetstream.wire import Reply, status, status_text

OLDEST = (2, 11)
PING_INTERVAL = 10  # two unanswered ones, and the connection counts as broken


class Unanswered(Exception):
    """The request was sent, and no answer came."""


class Leaderless(BrokerUnavailable):
    """Nobody serves this stream now: on a cluster, for as long as its leader is elected."""


class _Waiter:
    """One request in flight. A batch ends with a status, a single request with its first reply."""

    __slots__ = ("batch", "future", "replies", "subject", "timeout", "timer", "touched")

    def __init__(self, subject: bytes, future: asyncio.Future[list[Reply]], batch: bool, timeout: float) -> None:
        self.subject = subject
        self.timeout = timeout
        self.future = future
        self.batch = batch
        self.replies: list[Reply] = []
        self.touched = False
        self.timer: asyncio.TimerHandle | None = None

    def take(self, block: bytes | None, payload: bytes) -> None:
        self.replies.append((block, payload))
        self.touched = True
        if (not self.batch or status(block)) and not self.future.done():
            self.future.set_result(self.replies)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def forget(self) -> None:
        """Nobody will look at the outcome: asyncio would complain of a failure that came in the same moment."""
        if self.future.done() and not self.future.cancelled():
            self.future.exception()


class Connection:
    """Made by `Connection.open`. ``connected`` is set while there is a connection."""

    def __init__(self, address: Address, options: JetStreamOptions, url_source: Callable[[], str] | None) -> None:
        self.options = options
        self.clock = Clock()
        self.connected = asyncio.Event()
        self._address = address
        self._url_source = url_source
        self._client = Client(self._where, self._lost, self._refused)
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[bytes, _Waiter] = {}
        self._uncertain: dict[int, Callable[[], None]] = {}
        self._denied: dict[str, str] = {}
        self._number = 0
        self._inbox = b"_INBOX.%b." % secrets.token_hex(11).encode()
        self._last_error: Exception | None = None
        self._opened = False
        self._fatal: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def open(
        cls, address: Address, options: JetStreamOptions, url_source: Callable[[], str] | None = None
    ) -> Connection:
        """Connect, trying for `connect_timeout`. Raises `BrokerUnavailable`, `BrokerRefused`, `BrokerUnsuitable`."""
        check_keys(options)
        connection = cls(address, options, url_source)
        try:
            await connection._connect()
        except BaseException:
            await connection.close()
            raise
        return connection

    # --- requests

    async def request(
        self, subject: bytes, payload: bytes = b"", block: bytes = b"", timeout: float | None = None
    ) -> Reply:
        """Publish to ``subject`` and wait for the one answer, for ``timeout`` seconds (default: the options').
        Raises `Unanswered`, `BrokerError`."""
        reply = (await self._ask(subject, payload, block, batch=False, timeout=timeout))[0]
        if not reply[1] and status(reply[0]) == 503:
            raise BrokerUnavailable(
                f"Nobody at {self} answers for {subject.decode()}: JetStream is starting, or its stream was deleted"
            )
        return reply

    async def batch(self, subject: bytes, body: Mapping[str, Any]) -> tuple[list[Reply], Reply]:
        """A direct get of several messages: them, and the status that ended them. Raises `BrokerError`."""
        try:
            *messages, end = await self._ask(subject, json.dumps(body).encode(), b"", batch=True)
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None
        block = end[0] or b""
        if status(block) not in (204, 404, 413):
            text = f"{self} answers {status(block)} {status_text(block)} to {subject.decode()}"
            if status(block) == 503:
                raise Leaderless(text)
            raise BrokerUnavailable(text) if status(block) == 408 else BrokerFailed(text)
        return messages, end

    async def api(
        self, call: str, body: Mapping[str, Any] | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """One call of the JetStream API. Raises `refusals.Refusal` (a `BrokerFailed`) and other `BrokerError`s."""
        try:
            _, payload = await self.request(
                f"$JS.API.{call}".encode(), b"" if body is None else json.dumps(body).encode(), timeout=timeout
            )
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None
        answer: dict[str, Any] = json.loads(payload)
        if "error" in answer:
            raise refusals.of(answer["error"], f"{call} at {self}")
        return answer

    async def _ask(
        self, subject: bytes, payload: bytes, block: bytes, batch: bool, timeout: float | None = None
    ) -> list[Reply]:
        if not self._client.is_connected:
            raise self.unavailable()
        self._check_size(subject, len(block) + len(payload))
        self._number += 1
        number = b"%x" % self._number
        timeout = self.options.request_timeout if timeout is None else timeout
        waiter = self._waiters[number] = _Waiter(subject, self._loop.create_future(), batch, timeout)
        self._send(subject, self._inbox + number, block, payload)
        waiter.timer = self._loop.call_later(timeout, self._expire, waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            waiter.forget()
            raise
        finally:
            waiter.timer.cancel()
            del self._waiters[number]

    def _check_size(self, subject: bytes, size: int) -> None:
        """Over a message that is too large the server would end the connection, and with it all that is in flight."""
        if size > self.max_payload:
            raise BrokerFailed(
                f"A message of {size} bytes on {subject.decode()}: {self} takes {self.max_payload}, headers included",
                hint="Raise max_payload in the nats-server's configuration.",
            )

    def _send(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        total = len(block) + len(payload)
        if block:
            head = b"HPUB %b %b %d %d\r\n" % (subject, reply, len(block), total)
        else:
            head = b"PUB %b %b %d\r\n" % (subject, reply, total)
        self._client.send(b"".join((head, block, payload, b"\r\n")))

    def _expire(self, waiter: _Waiter) -> None:
        timeout = waiter.timeout
        if waiter.touched:  # a batch that still comes in
            waiter.touched = False
            waiter.timer = self._loop.call_later(timeout, self._expire, waiter)
        else:
            waiter.fail(Unanswered(f"{self} did not answer {waiter.subject.decode()} within {timeout:g} s"))

    def _answered(self, subject: bytes, block: bytes | None, payload: bytes) -> None:
        waiter = self._waiters.get(subject[len(self._inbox) :])
        if waiter is not None:
            waiter.take(block, payload)

    def publish(self, subject: str, payload: bytes = b"", block: bytes = b"") -> None:
        """Publish without an acknowledgement. Raises `BrokerUnavailable`."""
        if not self._client.is_connected:
            raise self.unavailable()
        self._check_size(subject.encode(), len(block) + len(payload))
        self._send(subject.encode(), b"", block, payload)

    # --- live subjects

    async def follow(self, subject: str, listener: Listener, uncertain: Callable[[], None] = lambda: None) -> int:
        """Call ``listener`` for every message on ``subject`` from the return of this on, and ``uncertain`` after every
        reconnect. Gives the number to `unfollow` by. Raises `BrokerError`."""
        if not self._client.is_connected:
            raise self.unavailable()
        number = self._client.listen(subject, listener)
        try:
            await self.round_trip()
            if subject.lower() in self._denied:
                raise refusals.denied(self._denied[subject.lower()], str(self))
        except BaseException as error:
            self._client.unlisten(number)
            if isinstance(error, Unanswered):
                raise BrokerUnavailable(str(error)) from None
            raise
        self._uncertain[number] = uncertain
        return number

    def unfollow(self, number: int) -> None:
        self._uncertain.pop(number, None)
        self._client.unlisten(number)

    async def round_trip(self) -> None:
        """Return once the server has worked through everything sent before. Raises `Unanswered`, `BrokerError`."""
        # A message to our own inbox: it comes back behind everything that the server did for us before.
        await self._ask(self._inbox + b"%x" % (self._number + 1), b"", b"", batch=False)

    # --- the connection

    @property
    def max_payload(self) -> int:
        """The largest message, headers included, that the server takes."""
        return self._client.max_payload

    @property
    def version(self) -> str:
        return str(self._client._server_info.get("version", "0"))

    @property
    def jetstream(self) -> bool:
        """Whether the server at the other end says that it has JetStream."""
        return bool(self._client._server_info.get("jetstream"))

    def __str__(self) -> str:
        server = self._client._current_server
        return f"nats://{server.uri.netloc.rpartition('@')[2]}" if server else str(self._address)

    def unavailable(self) -> BrokerUnavailable:
        reason = f": {_words(self._last_error)}" if self._last_error else ""
        return BrokerUnavailable(f"Not connected to {self}{reason}")

    async def close(self) -> None:
        """Close the connection; what is in flight is unanswered. A second call does nothing."""
        self.connected.clear()
        self._lost()
        await self._client.abort()
        if not self._fatal.done():
            self._fatal.cancel()

    def _where(self) -> Address:
        if self._url_source is not None:
            try:
                self._address = parse(self._url_source())[0]
            except BrokerError as error:
                raise errors.Error(error.message) from error
        address, options = self._address, self.options
        address = replace(address, tls=address.tls or options.tls_ca is not None or options.tls_first)
        if address.user is not None or address.token is not None:  # the URL's login, not a mixture of two
            return address
        return replace(address, user=options.user, password=options.password, token=options.token)

    async def _connect(self) -> None:
        task = asyncio.create_task(self._dial(), name="nats-connect")
        try:
            await asyncio.wait({task, self._fatal}, timeout=self.options.connect_timeout, return_when="FIRST_COMPLETED")
            if not task.done():
                self._client.given_up = True
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self._give_up()
            task.result()
        finally:
            task.cancel()
        check_version(self.version, str(self))
        self._client.listen(self._inbox.decode() + "*", self._answered)
        self._opened = True
        self.connected.set()

    async def _dial(self) -> None:
        options = self.options
        tls = tls_context(options, self._address.tls)
        try:
            await self._client.connect(
                servers=list(self._address.servers),
                error_cb=self._on_error,
                reconnected_cb=self._on_reconnected,
                name=options.name,
                allow_reconnect=True,
                connect_timeout=options.connect_timeout / 2,  # type: ignore[arg-type]  # of one server
                max_reconnect_attempts=-1,
                ping_interval=PING_INTERVAL,
                pending_size=0,
                user_credentials=options.creds_file,
                nkeys_seed_str=options.nkey_seed,
                tls=tls,
                tls_hostname=options.tls_hostname,
                tls_handshake_first=options.tls_first,
            )
        except Exception as error:  # noqa: BLE001  # keys, certificates, names: the library checks nothing beforehand
            self._last_error = error
            self._give_up()

    def _give_up(self) -> NoReturn:
        error = self._last_error
        raise refusals.connecting(error, str(self._address), _words(error)) from error

    async def _on_error(self, error: Exception) -> None:
        if self._fatal.done():  # what follows a refusal, such as a reset, says less
            return
        self._last_error = error
        if not self._opened and refusals.is_final(error):
            self._fatal.set_result(None)

    async def _on_reconnected(self) -> None:
        self._last_error = None
        self.connected.set()
        for uncertain in tuple(self._uncertain.values()):
            uncertain()

    def _lost(self) -> None:
        self.connected.clear()
        self._denied.clear()
        for waiter in tuple(self._waiters.values()):
            waiter.fail(Unanswered(f"The connection to {self} broke before {waiter.subject.decode()} was answered"))

    def _refused(self, words: str) -> None:
        """``words`` name the subject in lower case: permissions violation for publish to "…"."""
        subject = words.partition('"')[2].partition('"')[0]
        if "subscription" in words:
            self._denied[subject] = words
        inbox = subject.startswith("_inbox.")
        for waiter in tuple(self._waiters.values()):
            if inbox or waiter.subject.decode().lower() == subject:
                waiter.fail(refusals.denied(words, str(self)))


def _words(error: Exception | None) -> str:
    """One line for an error of the client library."""
    if error is None or isinstance(error, TimeoutError):
        return "no answer"
    return " ".join(str(error).split()).removeprefix("nats: ") or type(error).__name__


def check_version(version: str, where: str) -> None:
    """Raise `BrokerUnsuitable` for a server that is too old."""
    parts = tuple(int(part) for part in version.split("-")[0].split(".")[:2] if part.isdigit())
    if parts < OLDEST:
        raise BrokerUnsuitable(
            f"{where} is nats-server {version}; Tailrace needs {OLDEST[0]}.{OLDEST[1]} or newer",
            hint="Upgrade nats-server.",
        )
