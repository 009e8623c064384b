"""A stream over HTTP, followed to its ending through broken connections and restarted gateways.

Theory. The position is the number of bytes received, with the incarnation that they belong to; both together name the
next byte at any gateway. A body that ends cleanly is a stream that is done. A body that breaks says nothing:
``/status`` tells whether the stream has a bad ending behind what was received, or goes on.

Rules. A start carries an id, so that repeating it joins instead of running twice. What a gateway cannot do now (502,
503, 504, no connection) is tried again after a pause with jitter, for as long as ``patience`` allows; what it refuses
is raised.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tailrace.decide import ending_error
from tailrace.errors import BrokerError, CursorGone, StreamDeleted, StreamEnded, StreamNotFound, TailraceError
from tailrace.model import Ending, Mark, Status

BUSY = frozenset({502, 503, 504})
ENDED = frozenset({Status.ERROR, Status.CANCELLED, Status.PRODUCER_LOST, Status.EXPIRED, Status.TRIMMED})
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0  # seconds


class Unreachable(BrokerError):
    """No gateway answers."""

    code = "gateway-unreachable"
    hint = "Start one with `tailrace up`, or name it with --gateway or --port."


class _Busy(Exception):
    """The gateway cannot answer now."""

    def __init__(self, error: TailraceError, retry_after: float = 0) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after = retry_after


def new_client(**options: Any) -> httpx.AsyncClient:
    """A client for gateways: bodies as they are, and no proxy that the environment names."""
    # a stream may be silent for long; what hides a dead peer behind silence is asked again after a minute
    timeout = httpx.Timeout(60.0, connect=5.0)
    return httpx.AsyncClient(trust_env=False, timeout=timeout, headers={"accept-encoding": "identity"}, **options)


class Follower:
    """``base`` gives the URL of a gateway, anew at every attempt. ``start`` is the body of ``POST /v1/runs`` for a run
    that is to be started (with its id). ``notice`` hears ``lost`` and ``resumed``. Patience in seconds: before the
    first byte of an answer, and after."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        base: Callable[[], str],
        stream_id: str,
        *,
        start: dict[str, Any] | None = None,
        offset: int = 0,
        incarnation: str | None = None,
        cursor: str = "",
        notice: Callable[[str], None] = lambda event: None,
        patience: tuple[float, float] = (10.0, 300.0),
    ) -> None:
        self.stream_id = stream_id
        self.offset = offset
        self.incarnation = incarnation
        self.reconnects = 0
        self._client, self._base, self._start, self._cursor = client, base, start, cursor
        self._notice, self._patience = notice, patience
        self._began = self._lost = False
        self._failures = 0
        self._deadline: float | None = None
        if cursor:
            mark = Mark.parse(stream_id, cursor)
            self.offset, self.incarnation = mark.bytes, str(mark.incarnation)

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The bytes from the position on, as they come. Returns at the end of a stream that is done.

        Raises the ending's `StreamEnded`, what the gateway refuses, and `Unreachable` when patience is over.
        """
        while True:
            try:
                async with self._open() as response:
                    self._opened(response)
                    async for part in response.aiter_raw():
                        self.offset += len(part)
                        self._cursor, self._failures = "", 0
                        yield part
                return
            except httpx.TransportError as error:
                if await self._over(error):
                    return
            except _Busy as busy:
                await self._pause(busy.error, busy.retry_after)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[httpx.Response]:
        if self._start is not None:
            request = self._client.stream("POST", f"{self._base()}/v1/runs", json=self._start)
        else:
            request = self._client.stream("GET", self._url(), params=self._position())
        async with request as response:
            if response.status_code != 200:
                await response.aread()
                self._refused(response)
            yield response

    def _url(self) -> str:
        return f"{self._base()}{run_path(self.stream_id)}"

    def _position(self) -> dict[str, str]:
        if self._cursor:
            return {"cursor": self._cursor}
        if self.incarnation is not None:
            return {"offset": str(self.offset), "incarnation": self.incarnation}
        return {"offset": str(self.offset)} if self.offset else {}

    def _opened(self, response: httpx.Response) -> None:
        found = response.headers.get("tailrace-incarnation")
        if self._began and found != self.incarnation:
            raise StreamDeleted(f"{self.stream_id} was deleted and started again")
        self.incarnation = found
        self._start, self._began, self._deadline = None, True, None
        if self._lost:
            self._lost = False
            self.reconnects += 1
            self._notice("resumed")

    def _refused(self, response: httpx.Response) -> None:
        error = problem(response)
        if response.status_code in BUSY:
            if error.code == "claim-timeout":
                self._start, self._deadline = None, None  # it is queued: what is left to do is to read it
            raise _Busy(error, retry_after(response))
        if self._began and isinstance(error, StreamNotFound | CursorGone):
            raise StreamDeleted(f"{self.stream_id} was deleted, or has expired, while it was read")
        raise error

    async def _over(self, error: httpx.TransportError) -> bool:
        """The connection broke. Whether the stream is done; raises its bad ending, or waits for the next attempt."""
        reason: TailraceError = Unreachable(f"No answer from {self._base()}: {error or type(error).__name__}")
        at_least = 0.0
        if self._began:
            try:
                if await self._is_done():
                    return True
            except httpx.TransportError as again:
                reason = Unreachable(f"No answer from {self._base()}: {again or type(again).__name__}")
            except _Busy as busy:
                reason, at_least = busy.error, busy.retry_after
            if not self._lost:
                self._lost = True
                self._notice("lost")
        await self._pause(reason, at_least)
        return False

    async def _is_done(self) -> bool:
        response = await self._client.get(self._url() + "/status")
        if response.status_code != 200:
            self._refused(response)
        told = response.json()
        if told["incarnation"] not in (None, self.incarnation):
            raise StreamDeleted(f"{self.stream_id} was deleted and started again")
        status = Status(told["status"])
        if told["bytes"] > self.offset:
            return False
        if status in ENDED and (ended := bad_ending(told)) is not None:
            raise ended
        return status is Status.DONE and told["bytes"] == self.offset  # below it: the next request says so

    async def _pause(self, error: TailraceError, at_least: float = 0) -> None:
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._patience[self._began]
        if now >= self._deadline:
            raise error
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        # a named pause is kept to within jitter, but never beyond what is left of the patience
        pause = min(at_least, LONGEST_PAUSE) + random.uniform(0, longest)
        await asyncio.sleep(min(pause, self._deadline - now))


def run_path(stream_id: str, what: str = "") -> str:
    """The path of a run. ``.`` and ``..`` are ids, and clients fold paths that hold them."""
    return f"/v1/runs/{stream_id.replace('.', '%2E') if not stream_id.strip('.') else stream_id}{what}"


def problem(response: httpx.Response) -> TailraceError:
    """What a gateway's answer other than success says, as an error. The body must have been read."""
    try:
        told = response.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        told = {}
    if response.status_code == 404 and "code" not in told:
        return StreamNotFound("Stream not found")
    said = str(told.get("detail") or f"The gateway answered {response.status_code} {response.reason_phrase}")
    faults = [f"{'.'.join(map(str, one['path']))}: {one['message']}" for one in told.get("errors", ())]
    message = f"{said}: {'; '.join(faults)}" if faults else said
    error = CursorGone(message) if response.status_code == 410 else TailraceError(message)
    error.code, error.hint = str(told.get("code", "gateway-failed")), str(told.get("hint", ""))
    return error


def bad_ending(told: dict[str, Any]) -> StreamEnded | None:
    """The ending that a status tells, None where it is ``done``."""
    return ending_error(Ending(Status(told["status"]), told.get("code"), told.get("message")))


def retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0
