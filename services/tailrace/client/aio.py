"""The asyncio client: drives the exchanges over `httpx.AsyncClient`. `tailrace.client.sync` is its twin.

Rules. Nothing is decided here. Each iteration owns the response that it reads, and closes it however it ends. The
client closes what it opened: its responses, and its httpx client, not one that was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx

from tailrace.client.answer import BaseAnswer
from tailrace.client.errors import ClientClosed
from tailrace.client.exchange import Call, Exchange, Patience, Pause
from tailrace.client.following import Following, Notice, Position
from tailrace.client.outgoing import OPTIONS, TIMEOUT, Gateway, Setup, head_of, request
from tailrace.client.problems import status_of
from tailrace.model import StreamInfo

if TYPE_CHECKING:
    from tailrace.message.chunks import Chunk
    from tailrace.message.message import Message


class AsyncClient:
    """Runs and streams at ``gateway``: a URL, or a function that gives one at every attempt.

    ``headers`` and ``auth`` (as httpx takes it) go with every request; ``timeout`` is of one attempt, ``patience`` of
    all. ``notice`` hears ``lost`` when an answer's connection broke, and ``resumed``. ``http`` is an httpx client to
    use, and to leave open; without it there is an own one. Raises `InvalidGateway`.
    """

    def __init__(
        self,
        gateway: Gateway = "http://127.0.0.1:8080",
        *,
        headers: Mapping[str, str] | None = None,
        auth: Any = None,
        timeout: httpx.Timeout | float = TIMEOUT,
        patience: Patience | None = None,
        notice: Notice = lambda event: None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._setup = Setup(gateway, headers, auth, timeout, patience or Patience(), notice)
        self._http = http or httpx.AsyncClient(**OPTIONS)
        self._owns = http is None
        self._responses: set[httpx.Response] = set()
        self._closed = False

    async def run(
        self, handler: str, input: object, *, id: str | None = None, format: str | None = None, ttl: float | None = None
    ) -> AsyncAnswer:
        """Start a run, or join the one of the same id and request; returns when a worker has taken it.

        ``input`` is JSON values or pydantic models, ``ttl`` seconds to keep the stream after its last byte. Without an
        ``id`` there is a new one, `AsyncAnswer.id`. Raises what the gateway refuses: `tailrace.errors.RunError` and
        its kinds, `LimitExceeded`, `InvalidStreamId`; and `Unreachable` when patience is over.
        """
        following = self._setup.started(request(handler, input, id, format, ttl))
        answer = AsyncAnswer(self, following, format)
        await answer._open()
        return answer

    def resume(
        self,
        stream: str | Position,
        *,
        cursor: str = "",
        offset: int = 0,
        incarnation: str | None = None,
        format: str | None = None,
    ) -> AsyncAnswer:
        """A stream, by its id, from its beginning, a cursor, a byte offset or a `Position`. Nothing is asked yet.

        ``format`` names how it was written, where its headers do not tell. Raises `tailrace.errors.InvalidCursor`,
        `InvalidStreamId`.
        """
        return AsyncAnswer(self, self._setup.resumed(stream, cursor, offset, incarnation), format)

    async def status(self, id: str) -> StreamInfo:
        """What the stream is now. Raises `tailrace.errors.StreamNotFound`."""
        return status_of(await self._called(self._setup.call("GET", id, "/status")))

    async def cancel(self, id: str) -> StreamInfo:
        """Stop a run; what it was when it was told to. Raises `tailrace.errors.StreamNotFound`."""
        return status_of(await self._called(self._setup.call("POST", id, "/cancel")))

    async def delete(self, id: str) -> None:
        """Delete the stream and free its id. Raises `tailrace.errors.StreamNotFound`."""
        await self._called(self._setup.call("DELETE", id))

    async def aclose(self) -> None:
        """Close what was opened here; answers that are being read break off with `ClientClosed`."""
        self._closed = True
        for response in tuple(self._responses):
            await self._close(response)
        if self._owns:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # ── driving ──

    async def _called(self, call: Call) -> bytes:
        await self._drive(call)
        assert call.body is not None
        return call.body

    async def _drive(self, exchange: Exchange) -> httpx.Response | None:
        """The next response whose body is to be read part by part; None at the end."""
        while (step := exchange.step()) is not None:
            if self._closed:
                raise ClientClosed("The client is closed")
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            response = None
            try:
                asked = self._http.build_request(**self._setup.arguments(step))
                response = await self._http.send(asked, **self._setup.sending)
                self._responses.add(response)
                if exchange.answered(head := head_of(response)):
                    wanted, response = response, None
                    return wanted
                exchange.told(head, await response.aread())
            except httpx.TransportError as error:
                exchange.broke(self._setup.lost(error))
            finally:
                if response is not None:
                    await self._close(response)
        return None

    async def _close(self, response: httpx.Response) -> None:
        self._responses.discard(response)
        await response.aclose()


class AsyncAnswer(BaseAnswer):
    """A stream that is read: `bytes`, `chunks` or `messages`, as it comes, whatever becomes of the connection.

    All three begin where the answer stands (`position`), so an iteration that was left is gone on with by the next.
    They end when the stream is done. They raise its ending where it is another one (`tailrace.errors.StreamEnded` and
    its kinds), what a gateway refuses, and `Unreachable` when patience is over.
    """

    def __init__(self, client: AsyncClient, following: Following, format: str | None) -> None:
        super().__init__(following, format)
        self._client = client
        self._opened: httpx.Response | None = None

    async def status(self) -> StreamInfo:
        """What the stream is now. Raises `tailrace.errors.StreamNotFound`."""
        return await self._client.status(self.id)

    async def cancel(self) -> StreamInfo:
        """Stop the run; what it was when it was told to. Raises `tailrace.errors.StreamNotFound`."""
        return await self._client.cancel(self.id)

    async def delete(self) -> None:
        """Delete the stream and free its id. Raises `tailrace.errors.StreamNotFound`."""
        await self._client.delete(self.id)

    async def read(self) -> bytes:
        """All bytes from the position on."""
        return b"".join([part async for part in self.bytes()])

    async def bytes(self) -> AsyncGenerator[bytes, None]:
        """The bytes from the position on, as they come, cut anywhere."""
        following, turn = self._following, self._following.begin()
        response, self._opened = self._opened, None
        while response := response or await self._client._drive(following):
            try:
                async for part in response.aiter_raw():
                    following.received(turn, part)
                    yield part
                following.ended(turn)
            except httpx.TransportError as error:
                following.broke(self._client._setup.lost(error))
            finally:
                await self._client._close(response)
            response = None

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The chunks, decoded by the format that was asked for or that the response tells.

        Raises also `NotAtBeginning`, `tailrace.errors.UnknownFormat`, `tailrace.wire.errors.WireError`.
        """
        decoding = self._decoding
        decoding.require(self.position.offset)
        for chunk in decoding.chunks():
            yield chunk
        async with aclosing(self.bytes()) as parts:
            async for part in parts:
                decoding.feed(part, self.headers)
                for chunk in decoding.chunks():
                    yield chunk
        decoding.finish(self.headers)
        for chunk in decoding.chunks():
            yield chunk

    async def messages(self) -> AsyncGenerator[Message, None]:
        """The message as of every chunk, and once more where the end changes it. Raises as `chunks` does."""
        decoding = self._decoding
        decoding.require(self.position.offset, messages=True)
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                yield decoding.add(chunk)
        if (settled := decoding.settle()) is not None:
            yield settled

    async def message(self) -> Message:
        """The whole message. Raises as `chunks` does."""
        async for _ in self.messages():
            pass
        return self._decoding.message

    async def text(self) -> str:
        """The message's text. Raises as `chunks` does."""
        return (await self.message()).text

    async def aclose(self) -> None:
        """Close the connection of an answer that nobody reads; the stream goes on, and can be read again."""
        response, self._opened = self._opened, None
        if response is not None:
            await self._client._close(response)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _open(self) -> None:
        self._opened = await self._client._drive(self._following)
