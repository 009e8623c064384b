"""What one gateway process is: its store, its settings, the responses that stream now, and whether it drains.

A gateway keeps nothing else. Draining means: new requests are refused, every response that follows a live stream stops
at once (the client resumes elsewhere, at the next byte), and requests that wait for a claim are told where their run
is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from tailrace.contracts import StreamStore
from tailrace.errors import BrokerUnavailable
from tailrace.gateway.problems import Problem
from tailrace.settings import Settings

T = TypeVar("T")


class Drains(Protocol):
    """A response that can be told to stop."""

    def drain(self) -> None: ...


class Gateway:
    """The state that the routes share."""

    def __init__(self, store: StreamStore, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.responses: set[Drains] = set()
        self._draining = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    def drain(self) -> None:
        """Stop following live streams, and take no new requests. Idempotent."""
        self._draining.set()
        for response in tuple(self.responses):
            response.drain()

    def require_open(self) -> None:
        """Raise where the gateway drains."""
        if self.draining:
            raise Problem("draining", "This gateway is stopping", "Send the request again; another gateway takes it.")

    async def bounded(self, answer: Awaitable[T], more: float = 0) -> T:
        """Await the store, for ``TAILRACE_REQUEST_TIMEOUT`` and ``more`` seconds at most. Raises
        `BrokerUnavailable`."""
        try:
            async with asyncio.timeout(self.settings.request_timeout + more):
                return await answer
        except TimeoutError:
            raise BrokerUnavailable("The broker did not answer in time") from None

    async def patiently(self, answer: Awaitable[T], receive: Receive) -> T:
        """Await ``answer`` for as long as the client (by its ``receive``) stays and the gateway does not drain.
        Raises `ClientDisconnect`, and what `require_open` raises."""
        task = asyncio.ensure_future(answer)
        drain = asyncio.ensure_future(self._draining.wait())
        leave = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((task, drain, leave), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.require_open()
                raise ClientDisconnect
            return await task
        finally:
            for one in (task, drain, leave):
                one.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
