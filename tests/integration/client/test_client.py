"""The client at a real gateway with a real worker, over real sockets: runs, reads, formats, endings, refusals."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from tailrace.client import (
    AnswerTaken,
    AsyncClient,
    Client,
    ClientClosed,
    GatewayError,
    InvalidGateway,
    NotAtBeginning,
    Patience,
    Position,
    Unreachable,
)
from tailrace.errors import (
    CursorGone,
    InvalidCursor,
    InvalidInput,
    InvalidStreamId,
    NoWorkers,
    OffsetOutOfRange,
    ProducerLost,
    RunConflict,
    StreamCancelled,
    StreamDeleted,
    StreamErrored,
    StreamNotFound,
    UnknownFormat,
    UnknownHandler,
)
from tailrace.gateway.launch import gateway_server
from tailrace.gateway.server import started
from tailrace.memory import MemoryStore
from tailrace.message.accumulator import AssistantMessageAccumulator
from tailrace.message.chunks import TextDeltaChunk
from tailrace.model import Ending, Status
from tailrace.settings import load
from tailrace.wire import FORMATS, find_format
from tailrace.wire.errors import WireError
from tailrace.worker import handler
from tailrace.worker.answer import Controller
from tailrace.worker.app import Worker

LEASE_TTL = 1.0
WORDS = "Das Wasser läuft weiter, 水は流れ続ける."
QUICK = Patience(start=2, resume=20, first_pause=0.001, longest_pause=0.05)
ANSWERS = [name for name in FORMATS if not name.startswith("plain-text;")]  # whose headers a data stream has


class Prompt(BaseModel):
    text: str


def handlers(release: asyncio.Event) -> list[Any]:
    """``say`` is done at once, ``hold`` when a test says so, ``fail`` raises, ``chat`` writes a message."""

    @handler("say")
    async def say(prompt: Prompt) -> AsyncIterator[str]:
        for word in prompt.text.split(" "):
            yield word + " "

    @handler("hold")
    async def hold(prompt: Prompt) -> AsyncIterator[str]:
        yield prompt.text
        await release.wait()
        yield "!"

    @handler("fail")
    async def fail(prompt: Prompt) -> AsyncIterator[str]:
        yield prompt.text
        raise ValueError("it broke")

    @handler("raw")
    async def raw(prompt: Prompt) -> AsyncIterator[bytes]:
        yield b"\xff\x00"

    @handler("chat")
    async def chat(prompt: Prompt, controller: Controller) -> None:
        controller.append_reasoning("Let me see. ")
        for letter in prompt.text:
            controller.append_text(letter)
            await controller.drain()
        with controller.add_tool_call_part("sum", tool_call_id="t") as call:
            call.args.append('{"a": [1, 2]}')
            call.set_response({"result": 3})

    return [say, hold, fail, raw, chat]


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Any]:
    release = asyncio.Event()
    settings = load(None, port=0, lease_ttl=LEASE_TTL, **options)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(MemoryStore(settings.limits(), lease_ttl=LEASE_TTL))
        await store.start()
        server = gateway_server(store, settings, install_signals=False)
        await stack.enter_async_context(started(server))
        yield SimpleNamespace(
            store=store,
            server=server,
            url=f"http://127.0.0.1:{server.bound_port}",
            release=release,
            worker=lambda: Worker(store, handlers(release), lease_ttl=LEASE_TTL),
        )


@pytest.fixture
async def service() -> AsyncIterator[Any]:
    async with serving() as one:
        yield one


async def published(store: MemoryStore, stream_id: str, *chunks: bytes, end: str | None = "done", **claim: Any) -> None:
    await store.acquire(stream_id, **claim)
    for chunk in chunks:
        await store.append(stream_id, chunk)
    if end is not None:
        await store.finalize(stream_id, end)


# ---------------------------------------------------------------- runs


async def test_a_run_is_started_and_read(speech: Any, service: Any) -> None:
    async with service.worker(), speech.client(service.url) as client:
        answer = await speech.call(client.run, "say", Prompt(text=WORDS))
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert await speech.call(answer.read) == (WORDS + " ").encode()
        assert await speech.call(answer.read) == b""  # there is no more
        assert answer.position.offset == len(WORDS.encode()) + 1
        info = await speech.call(answer.status)
        assert (info.stream_id, info.status, info.bytes) == (answer.id, Status.DONE, answer.position.offset)
        assert str(info.incarnation) == answer.position.incarnation
        assert answer.reconnects == 0


async def test_the_same_id_and_request_join_and_another_request_is_a_conflict(speech: Any, service: Any) -> None:
    async with service.worker(), speech.client(service.url, patience=QUICK) as client:
        first = await speech.call(client.run, "say", {"text": "a b"}, id="r", ttl=60)
        again = await speech.call(client.run, "say", {"text": "a b"}, id="r", ttl=60)
        assert await speech.call(first.text) == await speech.call(again.text) == "a b "
        with pytest.raises(RunConflict):
            await speech.call(client.run, "say", {"text": "c"}, id="r")


async def test_what_the_gateway_refuses_is_its_own_error(speech: Any, service: Any) -> None:
    async with speech.client(service.url, patience=Patience(start=0.1)) as client:
        with pytest.raises(NoWorkers):
            await speech.call(client.run, "say", {"text": ""})
        async with service.worker():
            with pytest.raises(UnknownHandler) as unknown:
                await speech.call(client.run, "sing", {"text": ""})
            assert unknown.value.known == ("chat", "fail", "hold", "raw", "say")
            with pytest.raises(InvalidInput) as invalid:
                await speech.call(client.run, "say", {"words": ""})
            assert [error["path"] for error in invalid.value.errors] == [["text"]]
            with pytest.raises(UnknownFormat):
                await speech.call(client.run, "say", {"text": ""}, format="smoke")
            for wrong in (float("nan"), {1, 2}, "\ud800"):
                with pytest.raises(InvalidInput):
                    await speech.call(client.run, "say", wrong)
            with pytest.raises(InvalidStreamId):
                await speech.call(client.run, "say", {"text": ""}, id="a b")


# ---------------------------------------------------------------- positions


async def test_every_position_continues_at_the_next_byte(speech: Any, service: Any) -> None:
    data = WORDS.encode()
    await published(service.store, "s", data[:7], data[7:])
    cursors = [entry.cursor async for entry in service.store.read("s")]
    async with speech.client(service.url) as client:
        whole = client.resume("s")
        assert await speech.call(whole.read) == data
        life = whole.position.incarnation
        for offset in range(0, len(data) + 1, 5):
            assert await speech.call(client.resume("s", offset=offset).read) == data[offset:]
            position = Position(*json.loads(json.dumps(Position("s", offset, life))))
            assert await speech.call(client.resume(position).read) == data[offset:]
        assert await speech.call(client.resume("s", cursor=cursors[0]).read) == data[7:]


async def test_an_iteration_that_was_left_is_gone_on_with(speech: Any, service: Any) -> None:
    async with service.worker(), speech.client(service.url) as client:
        answer = await speech.call(client.run, "hold", {"text": "abc"})
        async for part in speech.each(answer.bytes()):
            assert part == b"abc"
            break
        assert answer.position.offset == 3
        service.release.set()
        assert await speech.call(answer.read) == b"!"


async def test_two_iterations_of_one_answer_never_share_its_bytes(speech: Any, service: Any) -> None:
    await published(service.store, "s", b"a", end=None)
    async with speech.client(service.url) as client:
        answer = client.resume("s")
        old = speech.each(answer.bytes())
        assert await anext(old) == b"a"
        await service.store.append("s", b"b")
        new = speech.each(answer.bytes())
        assert await anext(new) == b"b"
        with pytest.raises(AnswerTaken):
            await anext(old)
        await service.store.finalize("s", "done")
        assert [part async for part in new] == []


async def test_a_position_that_is_gone_or_beyond_is_refused(speech: Any, service: Any) -> None:
    await published(service.store, "s", b"abc")
    async with speech.client(service.url) as client:
        first = client.resume("s")
        await speech.call(first.read)
        with pytest.raises(OffsetOutOfRange) as beyond:
            await speech.call(client.resume("s", offset=4).read)
        assert beyond.value.length == 3
        await speech.call(first.delete)
        with pytest.raises(StreamNotFound):
            await speech.call(client.resume(first.position).read)
        await published(service.store, "s", b"xyz")
        with pytest.raises(CursorGone) as gone:
            await speech.call(client.resume(first.position).read)
        again = await speech.call(client.status, "s")
        assert gone.value.incarnation == str(again.incarnation) != first.position.incarnation
        with pytest.raises(InvalidCursor):
            client.resume("s", cursor="nonsense")


async def test_a_reader_that_was_cut_off_for_being_slow_misses_nothing(speech: Any) -> None:
    piece, pieces = bytes(range(256)) * 512, 200
    async with serving(max_reader_lag_bytes=1024 * 1024) as service, speech.client(service.url) as client:
        await published(service.store, "s", b"!", end=None)
        answer, count = client.resume("s"), 0
        digest = hashlib.sha256()
        reading = speech.each(answer.bytes())
        digest.update(await anext(reading))
        for _ in range(pieces):  # nobody takes anything meanwhile
            await service.store.append("s", piece)
            await asyncio.sleep(0)
        await service.store.finalize("s", "done")
        async for part in reading:
            digest.update(part)
            count += len(part)
        assert count == pieces * len(piece)
        assert digest.hexdigest() == hashlib.sha256(b"!" + piece * pieces).hexdigest()
        assert answer.reconnects > 0


# ---------------------------------------------------------------- endings


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("error", StreamErrored),
        ("cancelled", StreamCancelled),
        ("lost", ProducerLost),
        ("deleted", StreamDeleted),
        ("replaced", StreamDeleted),
        ("expired", StreamDeleted),
    ],
)
async def test_each_ending_is_its_own_error_behind_the_last_byte(
    speech: Any, service: Any, end: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = service.store
    await published(store, "s", b"abc", end=None, ttl=60.0 if end == "expired" else None)
    async with speech.client(service.url, patience=QUICK) as client:
        reading = speech.each(client.resume("s").bytes())
        assert await anext(reading) == b"abc"
        if end == "lost":
            await store.takeover("s", 1, Ending(Status.PRODUCER_LOST, "producer-lost", "gone"))
        elif end in ("deleted", "replaced"):
            await store.delete("s")
            if end == "replaced":
                await published(store, "s", b"other", end=None)
        elif end == "expired":
            later = store.broker.now() + 61_000
            monkeypatch.setattr(store.broker, "now", lambda: later)
            await store.collect()
        else:
            await store.finalize("s", end, "it broke")
        with pytest.raises(kind):
            await anext(reading)


async def test_a_run_ends_as_its_handler_does(speech: Any, service: Any) -> None:
    async with service.worker(), speech.client(service.url, patience=QUICK) as client:
        failed = await speech.call(client.run, "fail", {"text": "abc"})
        with pytest.raises(StreamErrored, match="it broke") as raised:
            await speech.call(failed.read)
        assert (failed.position.offset, raised.value.code) == (3, "handler-error")
        held = await speech.call(client.run, "hold", {"text": "abc"})
        assert (await speech.call(held.cancel)).status is Status.STREAMING
        with pytest.raises(StreamCancelled):
            await speech.call(held.read)
        assert held.position.offset == 3
        await speech.call(held.delete)
        for call in (held.status, held.cancel, held.delete):
            with pytest.raises(StreamNotFound):
                await speech.call(call)


# ---------------------------------------------------------------- messages


def sum_of(message: Any) -> tuple[str, str, Any]:
    """The text, the reasoning and the tool's result of a message of ``chat``."""
    reasoning = next(part for part in message.parts if part.type == "reasoning")
    tool = next(part for part in message.parts if part.type == "tool-call")
    return message.text, reasoning.text, (tool.args, tool.result)


@pytest.mark.parametrize("name", ["data-stream", "data-stream;v=0.3.15", "assistant-transport", "ui-message-stream"])
async def test_messages_grow_chunk_by_chunk_in_every_format(speech: Any, service: Any, name: str) -> None:
    async with service.worker(), speech.client(service.url) as client:
        answer = await speech.call(client.run, "chat", {"text": WORDS}, format=name)
        messages = [message async for message in speech.each(answer.messages())]
        texts = [message.text for message in messages]
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
        assert len(set(texts)) > len(WORDS) / 2
        assert sum_of(messages[-1]) == (WORDS, "Let me see. ", ({"a": [1, 2]}, 3))
        assert messages[-1].status.type != "running"
        again = client.resume(answer.id) if ";" not in name else client.resume(answer.id, format=name)
        assert sum_of(await speech.call(again.message)) == sum_of(messages[-1])
        assert await speech.call(again.text) == WORDS


async def test_text_is_a_message_too_and_other_bytes_are_none(speech: Any, service: Any) -> None:
    async with service.worker(), speech.client(service.url) as client:
        said = await speech.call(client.run, "say", {"text": WORDS})
        assert await speech.call(said.text) == WORDS + " "
        told = await speech.call(client.run, "chat", {"text": WORDS}, format="text")
        assert (await speech.call(told.message)).text == WORDS
        with pytest.raises(UnknownFormat, match="octet-stream"):
            await speech.call((await speech.call(client.run, "raw", {"text": ""})).text)


async def test_an_empty_stream_is_an_empty_message(speech: Any, service: Any) -> None:
    await published(service.store, "s", content_type="text/plain")
    async with speech.client(service.url) as client:
        assert await speech.call(client.resume("s").text) == ""


def encoded(name: str) -> tuple[Any, bytes]:
    """An answer's bytes in a format, with characters that cuts may fall into."""
    format = find_format(name)
    encoder = format.encoder()
    chunks: list[Any] = []
    controller = Controller(chunks.append)
    controller.append_text("水は")
    controller.append_text("流れ続ける")
    controller.finish()
    return format, b"".join([*map(encoder.encode, chunks), encoder.finish()])


@pytest.mark.parametrize("name", ANSWERS)
async def test_leaving_and_going_on_gives_the_same_chunks(speech: Any, service: Any, name: str) -> None:
    format, data = encoded(name)
    headers = tuple((key, value) for key, value in format.headers.items() if key != "Content-Type")
    for stream_id, pieces in (("whole", [data]), ("cut", [bytes([byte]) for byte in data])):
        await published(service.store, stream_id, *pieces, content_type=format.headers["Content-Type"], headers=headers)
        async with speech.client(service.url) as client:
            whole = [chunk async for chunk in speech.each(client.resume(stream_id).chunks())]
            answer, got = client.resume(stream_id), []
            for _ in range(len(whole) + 1):
                async for chunk in speech.each(answer.chunks()):
                    got.append(chunk)
                    break
            assert got == whole
            left = client.resume(stream_id)
            async for message in speech.each(left.messages()):
                assert message.text == ""
                break
            assert await speech.call(left.text) == "水は流れ続ける"
            accumulator = AssistantMessageAccumulator(clock=lambda: 0, new_id=lambda: "")
            assert [accumulator.feed(chunk) for chunk in whole][-1].text == "水は流れ続ける"
            assert any(isinstance(chunk, TextDeltaChunk) for chunk in whole)


async def test_what_was_not_decoded_from_its_beginning_is_refused(speech: Any, service: Any) -> None:
    _, data = encoded("data-stream")
    await published(service.store, "s", data[:20], data[20:])
    async with speech.client(service.url) as client:
        middle = client.resume("s", offset=5, format="data-stream")
        for call in (middle.message, middle.text):
            with pytest.raises(NotAtBeginning):
                await speech.call(call)
        assert await speech.call(middle.read) == data[5:]
        mixed = client.resume("s", format="data-stream")
        async for _ in speech.each(mixed.bytes()):
            break
        with pytest.raises(NotAtBeginning):
            await speech.call(mixed.message)
        chunked = client.resume("s", format="data-stream")
        async for _ in speech.each(chunked.chunks()):
            break
        with pytest.raises(NotAtBeginning, match="without their message"):
            await speech.call(chunked.message)
        with pytest.raises(WireError):
            await speech.call(client.resume("s", format="assistant-transport").message)
        with pytest.raises(UnknownFormat):
            await speech.call(client.resume("s", format="smoke").message)


# ---------------------------------------------------------------- the client itself


async def test_what_was_given_is_left_open_and_gets_what_every_request_needs(speech: Any, service: Any) -> None:
    await published(service.store, "s", b"abc", end=None)
    seen: list[httpx.Request] = []

    async def note(request: httpx.Request) -> None:
        seen.append(request)

    hook: Any = note if speech.is_async else seen.append
    kind: Any = httpx.AsyncClient if speech.is_async else httpx.Client
    http = kind(event_hooks={"request": [hook]}, follow_redirects=True, headers={"x-app": "mine"}, trust_env=False)
    options = {"http": http, "headers": {"x-team": "ours", "Accept-Encoding": "gzip"}, "auth": ("me", "swordfish")}
    async with speech.client(service.url, **options) as client:
        reading = speech.each(client.resume("s").bytes())
        assert await anext(reading) == b"abc"
    with pytest.raises(ClientClosed):
        await anext(reading)
    assert not http.is_closed
    request = seen[0]
    assert request.headers.get_list("accept-encoding") == ["identity"]
    assert (request.headers["x-app"], request.headers["x-team"]) == ("mine", "ours")
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"me:swordfish").decode()
    own = await speech.call(http.get, service.url + "/healthz")
    assert own.status_code == 200
    await speech.call(http.aclose if speech.is_async else http.close)


async def test_a_reader_that_waits_is_told_when_its_client_closes(service: Any) -> None:
    await published(service.store, "s", b"abc", end=None)
    client = AsyncClient(service.url, patience=QUICK)
    began = asyncio.Event()

    async def read() -> None:
        async for part in client.resume("s").bytes():
            assert part == b"abc"
            began.set()

    reading = asyncio.create_task(read())
    await began.wait()
    await asyncio.sleep(0)  # it waits for more
    await client.aclose()
    with pytest.raises(ClientClosed):
        await reading
    with pytest.raises(ClientClosed):
        await client.status("s")


async def test_a_cancelled_reader_leaves_nothing_open(service: Any) -> None:
    await published(service.store, "s", b"abc", end=None)
    async with AsyncClient(service.url) as client:
        answer = client.resume("s")
        reading = asyncio.create_task(answer.read())
        while answer.position.offset < 3:
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not client._responses
        await service.store.finalize("s", "done")
        assert await answer.read() == b""


async def test_an_answer_that_nobody_reads_is_closed_and_can_be_read_again(speech: Any, service: Any) -> None:
    async with service.worker(), speech.client(service.url) as client:
        answer = await speech.call(client.run, "hold", {"text": "abc"})
        await speech.call(answer.aclose if speech.is_async else answer.close)
        service.release.set()
        assert await speech.call(answer.read) == b"abc!"
        async with AsyncClient(service.url) as other, await other.run("say", {"text": "a"}) as unread:
            assert unread.headers["x-resumable-stream-id"] == unread.id
        with Client(service.url) as blocking, blocking.resume("s") as unasked:
            assert not unasked.headers


async def test_nobody_there_is_unreachable_and_a_wrong_address_is_told_at_once(speech: Any) -> None:
    gone = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{gone.sockets[0].getsockname()[1]}"
    gone.close()
    await gone.wait_closed()
    secret = url.replace("://", "://me:swordfish@")
    async with speech.client(secret, patience=Patience(start=0.05)) as client:
        calls: list[Callable[[], Any]] = [
            lambda: speech.call(client.run, "say", {}),
            lambda: speech.call(client.resume("s").read),
            lambda: speech.call(client.status, "s"),
        ]
        for call in calls:
            with pytest.raises(Unreachable, match=f"No answer from {url}") as raised:
                await call()
            assert "swordfish" not in str(raised.value)
    for wrong in ("127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://[::1"):
        with pytest.raises(InvalidGateway):
            (AsyncClient if speech.is_async else Client)(wrong)


async def test_another_server_is_no_gateway(speech: Any, service: Any) -> None:
    async with speech.client(service.url + "/nothing", patience=QUICK) as client:
        with pytest.raises(GatewayError) as raised:
            await speech.call(client.status, "s")
        assert (raised.value.status, raised.value.code) == (404, "not-found")
