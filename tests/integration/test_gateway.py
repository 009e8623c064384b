"""The gateway over real sockets, on a memory store: every route, every status code, every byte."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
from pydantic import BaseModel

from tailrace.contracts import Command
from tailrace.errors import BrokerUnavailable
from tailrace.gateway.framing import frame
from tailrace.gateway.launch import gateway_server
from tailrace.gateway.server import GatewayServer, started
from tailrace.memory import MemoryBroker, MemoryStore
from tailrace.memory_runs import MemoryDelivery
from tailrace.model import Ending, Entry, Incarnation, Mark, RunRef, Status
from tailrace.settings import Settings, load
from tailrace.worker.app import Worker
from tailrace.worker.handlers import handler

CHUNKS = [b"one ", "zwölf ".encode(), b"\xff\x00", b"", b"a\r\nb\n", b"\n", "€".encode()[:2], "€".encode()[2:]]
WHOLE = b"".join(CHUNKS)
LEASE_TTL = 1.0


class Prompt(BaseModel):
    text: str


class Held:
    """Handlers that do as a test says: ``release`` lets `hold` go on."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    def handlers(self) -> list[Any]:
        @handler("say")
        async def say(prompt: Prompt) -> AsyncIterator[str]:
            for word in prompt.text.split(" "):
                yield word + " "

        @handler("hold")
        async def hold(prompt: Prompt) -> AsyncIterator[str]:
            yield prompt.text
            await self.release.wait()
            yield "!"

        return [say, hold]


class Service:
    """A store, a gateway on it, a client of it."""

    def __init__(self, store: MemoryStore, server: GatewayServer, client: httpx.AsyncClient) -> None:
        self.store, self.server, self.client = store, server, client
        self.held = Held()

    async def published(self, stream_id: str, *chunks: bytes, end: str | None = "done", **claim: Any) -> None:
        await self.store.acquire(stream_id, **claim)
        for chunk in chunks:
            await self.store.append(stream_id, chunk)
        if end is not None:
            await self.store.finalize(stream_id, end)

    async def cursors(self, stream_id: str) -> list[str]:
        return [entry.cursor async for entry in self.store.read(stream_id)]

    def worker(self) -> Worker:
        return Worker(self.store, self.held.handlers(), lease_ttl=LEASE_TTL)

    async def run(self, body: Any, **arguments: Any) -> httpx.Response:
        return await self.client.post("/v1/runs", json=body, **arguments)


@asynccontextmanager
async def serving(broker: MemoryBroker | None = None, **arguments: Any) -> AsyncIterator[Service]:
    settings: Settings = load(None, port=0, lease_ttl=LEASE_TTL, **arguments)
    async with AsyncExitStack() as stack:
        store = MemoryStore(settings.limits(), lease_ttl=LEASE_TTL, broker=broker)
        await stack.enter_async_context(store)
        await store.start()
        server = gateway_server(store, settings, install_signals=False)
        await stack.enter_async_context(started(server))
        address = f"http://127.0.0.1:{server.bound_port}"
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=address, trust_env=False, timeout=30))
        yield Service(store, server, client)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving() as one:
        yield one


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["detail"]
    assert body["title"]
    return body


def events(text: str) -> list[dict[str, Any]]:
    """SSE as a browser parses it: lines end at CR LF, CR or LF."""
    found, event = [], {"event": "message", "data": []}
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            if event["data"]:
                found.append(event | {"data": "\n".join(event["data"])})
            event = {"event": "message", "data": []}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                event["data"].append(value)
            else:
                event[name] = value
    return found


def content(found: list[dict[str, Any]]) -> bytes:
    as_bytes: dict[str, Callable[[str], bytes]] = {"message": str.encode, "base64": base64.b64decode}
    return b"".join(as_bytes[event["event"]](event["data"]) for event in found if event["event"] in as_bytes)


# ---------------------------------------------------------------- reading


async def test_every_offset_and_cursor_gives_the_very_next_byte(service: Service) -> None:
    await service.published("s", *CHUNKS, content_type="text/plain", headers=(("x-vercel-ai-data-stream", "v1"),))
    whole = await service.client.get("/v1/runs/s")
    assert whole.content == WHOLE
    assert whole.headers["x-resumable-stream-id"] == "s"
    assert whole.headers["x-vercel-ai-data-stream"] == "v1"
    assert whole.headers["content-type"] == "text/plain"
    life = whole.headers["tailrace-incarnation"]
    for offset in range(len(WHOLE) + 1):
        for query in ({"offset": offset}, {"offset": offset, "incarnation": life}):
            part = await service.client.get("/v1/runs/s", params=query)
            assert part.content == WHOLE[offset:]
            assert part.headers["content-length"] == str(len(WHOLE) - offset)
    position = 0
    for chunk, cursor in zip(CHUNKS, await service.cursors("s"), strict=True):
        position += len(chunk)
        part = await service.client.get("/v1/runs/s", params={"cursor": cursor})
        assert part.content == WHOLE[position:]
        assert part.headers["content-length"] == str(len(WHOLE) - position)


async def test_a_live_stream_is_followed_from_any_offset_even_one_that_is_yet_to_come(service: Service) -> None:
    await service.published("s", CHUNKS[0], end=None)
    seen = [asyncio.create_task(service.client.get("/v1/runs/s", params={"offset": at})) for at in range(len(WHOLE))]
    for chunk in CHUNKS[1:]:
        await service.store.append("s", chunk)
    await service.store.finalize("s", "done")
    for offset, response in enumerate(await asyncio.gather(*seen)):
        assert response.content == WHOLE[offset:]
        assert response.headers["transfer-encoding" if response.headers.get("content-length") is None else "etag"]


async def test_an_ended_stream_has_a_length_and_an_etag(service: Service) -> None:
    await service.published("s", *CHUNKS)
    whole = await service.client.get("/v1/runs/s")
    life, tag = whole.headers["tailrace-incarnation"], whole.headers["etag"]
    assert tag == f'"{life}-1-{len(WHOLE)}"'
    head = await service.client.head("/v1/runs/s")
    assert (head.status_code, head.content) == (200, b"")
    assert (head.headers["content-length"], head.headers["etag"]) == (str(len(WHOLE)), tag)
    assert head.headers["tailrace-incarnation"] == life
    same = await service.client.get("/v1/runs/s", headers={"if-none-match": f'"other", W/{tag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    other = await service.client.get("/v1/runs/s", headers={"if-none-match": '"other"'})
    assert other.content == WHOLE


async def test_head_of_a_live_stream_does_not_wait(service: Service) -> None:
    await service.published("s", b"x", end=None)
    head = await service.client.head("/v1/runs/s")
    assert head.status_code == 200
    assert "content-length" not in head.headers
    assert "etag" not in head.headers


@pytest.mark.parametrize("end", ["error", "cancelled", "delete", "lost"])
async def test_an_ending_that_is_not_done_cuts_a_plain_body_behind_its_last_byte(service: Service, end: str) -> None:
    await service.published("s", *CHUNKS, end=None)
    got = bytearray()

    async def read() -> None:
        async with service.client.stream("GET", "/v1/runs/s") as response:
            async for part in response.aiter_raw():
                got.extend(part)
                if bytes(got) == WHOLE:
                    await ended(service, "s", end)

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert bytes(got) == WHOLE
    if end != "delete":
        with pytest.raises(httpx.RemoteProtocolError):  # later readers are told too
            await service.client.get("/v1/runs/s")
        assert "content-length" not in (await service.client.head("/v1/runs/s")).headers


async def ended(service: Service, stream_id: str, end: str) -> None:
    if end == "delete":
        await service.store.delete(stream_id)
    elif end == "lost":
        await service.store.takeover(stream_id, 1, Ending(Status.PRODUCER_LOST, "producer-lost", "lost"))
    else:
        await service.store.finalize(stream_id, end, "told why", code="my-code" if end == "error" else None)


async def test_a_stored_header_cannot_speak_for_the_connection(service: Service) -> None:
    headers = (
        ("Connection", "close"),
        ("Content-Length", "3"),
        ("x-bad", "a\r\nx-worse: b"),
        ("cache-control", "no-store"),
    )
    await service.published("s", b"12345", headers=headers, content_type="text/x\r\nx-worst: c")
    response = await service.client.get("/v1/runs/s")
    assert response.content == b"12345"
    assert not {"x-bad", "x-worse", "x-worst"} & set(response.headers)
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-length"] == "5"


# ---------------------------------------------------------------- SSE frames


@pytest.mark.parametrize("content_type", ["text/plain; charset=utf-8", "application/json", "application/octet-stream"])
async def test_frames_carry_every_byte_and_end(service: Service, content_type: str) -> None:
    await service.published("s", *CHUNKS, content_type=content_type)
    response = await service.client.get("/v1/runs/s?frame=sse")
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response.text)
    assert content(found) == WHOLE
    assert [event["id"] for event in found[:-1]] == await service.cursors("s")
    assert (found[-1]["event"], json.loads(found[-1]["data"])["cursor"]) == ("end", found[-2]["id"])
    assert any(event["event"] == "message" for event in found) is (content_type != "application/octet-stream")


async def test_frames_go_on_behind_last_event_id(service: Service) -> None:
    await service.published("s", *CHUNKS)
    cursors = await service.cursors("s")
    for number, cursor in enumerate(cursors, 1):
        for query in ({}, {"cursor": cursors[0]}, {"offset": "1"}):  # an EventSource repeats its first URL
            response = await service.client.get(
                "/v1/runs/s", params={"frame": "sse", **query}, headers={"last-event-id": cursor}
            )
            assert content(events(response.text)) == b"".join(CHUNKS[number:])
    part = await service.client.get("/v1/runs/s?frame=sse&offset=5")
    assert content(events(part.text)) == WHOLE[5:]


async def test_frames_of_a_long_history_come_in_order(service: Service) -> None:
    chunks = [f"{number}:".encode() * 10 for number in range(3000)]
    await service.store.acquire("s", content_type="text/plain")
    await service.store.extend("s", chunks)
    await service.store.finalize("s", "done")
    response = await service.client.get("/v1/runs/s?frame=sse")
    found = events(response.text)
    assert [event["data"].encode() for event in found[:-1]] == chunks
    assert json.loads(found[-1]["data"])["cursor"] == found[-2]["id"]


@pytest.mark.parametrize(("end", "code"), [("error", "my-code"), ("cancelled", "cancelled"), ("delete", "deleted")])
async def test_frames_tell_every_other_ending(service: Service, end: str, code: str) -> None:
    await service.published("s", b"x", end=None)
    reading = asyncio.create_task(service.client.get("/v1/runs/s?frame=sse"))
    while not service.server.server_state.tasks:
        await asyncio.sleep(0)
    async with service.client.stream("GET", "/v1/runs/s?frame=sse") as response:
        async for _ in response.aiter_raw():
            await ended(service, "s", end)
    last = events((await reading).text)[-1]
    assert last["event"] == "error"
    assert json.loads(last["data"])["code"] == code
    assert json.loads(last["data"])["cursor"]


async def test_frames_keep_a_silent_connection_open(service: Service) -> None:
    async with serving(keepalive_interval=0.02) as chatty:
        await chatty.published("s", b"x", end=None)
        got = ""
        async with chatty.client.stream("GET", "/v1/runs/s?frame=sse") as response:
            async for part in response.aiter_text():
                got += part
                if got.count(": keepalive\n\n") >= 3:
                    await chatty.store.finalize("s", "done")  # again is no harm
        assert content(events(got)) == b"x"


def test_a_chunk_that_text_cannot_carry_goes_as_base64() -> None:
    for chunk in CHUNKS:
        entry = Entry("s", chunk, Mark(Incarnation(1, 1), 1, 1, len(chunk)))
        assert content(events(frame(entry, True).decode())) == chunk


# ---------------------------------------------------------------- bad positions


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("cursor=nonsense", "invalid-cursor"),
        ("cursor=OTHER", "invalid-cursor"),
        ("cursor=&cursor=", "invalid-position"),
        ("cursor=OWN&offset=1", "invalid-position"),
        ("cursor=OWN&incarnation=1-0000000000000001", "invalid-position"),
        ("offset=1&offset=2", "invalid-position"),
        ("offset=-1", "invalid-position"),
        ("offset=", "invalid-position"),
        ("offset=99999999999999999999", "invalid-position"),
        ("offset=%D9%A1", "invalid-position"),
        ("offset=1&incarnation=x", "invalid-position"),
        ("incarnation=1-0000000000000001", "invalid-position"),
        ("frame=ndjson", "invalid-parameter"),
    ],
)
async def test_a_bad_position_is_a_400(service: Service, query: str, code: str) -> None:
    await service.published("s", b"abc")
    await service.published("other", b"abc")
    own, other = (await service.cursors("s"))[0], (await service.cursors("other"))[0]
    response = await service.client.get("/v1/runs/s?" + query.replace("OWN", own).replace("OTHER", other))
    assert problem(response, 400, code)["hint"]


async def test_last_event_id_and_a_later_position_are_a_400(service: Service) -> None:
    await service.published("s", b"abc", b"def")
    first, second = await service.cursors("s")
    for query in (f"cursor={second}", "offset=4"):
        response = await service.client.get(f"/v1/runs/s?frame=sse&{query}", headers={"last-event-id": first})
        problem(response, 400, "invalid-position")
    bad = await service.client.get("/v1/runs/s?frame=sse", headers={"last-event-id": "nonsense"})
    problem(bad, 400, "invalid-cursor")


async def test_a_position_of_another_life_is_a_410_with_the_current_one(service: Service) -> None:
    await service.published("s", b"abc")
    cursor, old = (await service.cursors("s"))[0], (await service.store.status("s")).incarnation
    await service.store.delete("s")
    await service.published("s", b"abc")
    current = str((await service.store.status("s")).incarnation)
    for query in ({"cursor": cursor}, {"offset": 1, "incarnation": str(old)}):
        gone = problem(await service.client.get("/v1/runs/s", params=query), 410, "cursor-gone")
        assert gone["incarnation"] == current


async def test_an_offset_beyond_an_ended_stream_is_a_416(service: Service) -> None:
    await service.published("s", b"abc")
    response = await service.client.get("/v1/runs/s?offset=4")
    assert problem(response, 416, "offset-out-of-range")["length"] == 3
    assert response.headers["content-range"] == "bytes */3"


async def test_a_stream_that_ends_below_an_offset_is_no_clean_end(service: Service) -> None:
    await service.published("s", b"abc", end=None)
    plain = service.client.stream("GET", "/v1/runs/s?offset=9")
    framed = service.client.stream("GET", "/v1/runs/s?offset=9&frame=sse")
    async with plain as raw, framed as sse:
        await service.store.finalize("s", "done")
        with pytest.raises(httpx.RemoteProtocolError):
            await raw.aread()
        last = events((await sse.aread()).decode())[-1]
    assert (last["event"], json.loads(last["data"])["code"]) == ("error", "offset-out-of-range")


@pytest.mark.parametrize("bad", ["a%0A", "a%0D", "a%20b", "a%2Fb", "a/b", "x" * 257, "%C3%A9", "a%00", ""])
async def test_a_bad_id_is_a_400_with_the_pattern(service: Service, bad: str) -> None:
    for method in ("GET", "DELETE"):
        response = await service.client.request(method, f"/v1/runs/{bad}")
        assert "[A-Za-z0-9_.:-]{1,256}" in problem(response, 400, "invalid-id")["detail"]
    if "/" not in bad.replace("%2F", "/") and bad:
        for method, route in (("GET", "status"), ("POST", "cancel")):
            problem(await service.client.request(method, f"/v1/runs/{bad}/{route}"), 400, "invalid-id")


async def test_a_method_that_a_path_does_not_take_is_a_405(service: Service) -> None:
    for method, path, allowed in (
        ("DELETE", "", "GET, POST"),
        ("PUT", "/x", "GET, HEAD, DELETE"),
        ("POST", "/status", "GET, HEAD, DELETE"),  # of the stream that has this id
        ("POST", "/x/status", "GET"),
        ("GET", "/x/cancel", "POST"),
    ):
        response = await service.client.request(method, f"/v1/runs{path}")
        problem(response, 405, "method-not-allowed")
        assert response.headers["allow"] == allowed


async def test_a_missing_stream_is_the_seeds_own_404(service: Service) -> None:
    for method, path in (("GET", ""), ("GET", "/status"), ("POST", "/cancel"), ("DELETE", "")):
        response = await service.client.request(method, f"/v1/runs/nothing{path}")
        assert (response.status_code, response.text) == (404, '{"error":"stream not found"}')
        assert response.headers["content-type"] == "application/json"
    assert (await service.client.head("/v1/runs/nothing")).status_code == 404


# ---------------------------------------------------------------- runs


async def test_a_run_streams_and_the_same_request_joins_it(service: Service) -> None:
    async with service.worker():
        request = {"handler": "hold", "id": "r", "input": {"text": "hi"}}
        joined = [asyncio.create_task(service.run(request)) for _ in range(5)]
        async with service.client.stream("POST", "/v1/runs", json=request) as response:
            assert response.status_code == 200
            assert response.headers["x-resumable-stream-id"] == "r"
            service.held.release.set()
            assert await response.aread() == b"hi!"
        assert {one.text for one in await asyncio.gather(*joined)} == {"hi!"}
        assert (await service.run(request)).text == "hi!"  # ended
        problem(await service.run(request | {"input": {"text": "ho"}}), 409, "run-conflict")
        problem(await service.run(request | {"handler": "say"}), 409, "run-conflict")
    assert (await service.run(request)).text == "hi!"  # what is there needs no worker
    found = (await service.client.get("/v1/runs")).json()["runs"]
    assert [one["id"] for one in found] == ["r"]


async def test_an_id_is_made_up_where_none_is_given(service: Service) -> None:
    async with service.worker():
        first, second = [await service.run({"handler": "say", "input": {"text": "a b"}}) for _ in range(2)]
        assert first.text == second.text == "a b "
        assert first.headers["x-resumable-stream-id"] != second.headers["x-resumable-stream-id"]
        assert len(first.headers["x-resumable-stream-id"]) >= 22
        framed = await service.run({"handler": "say", "input": {"text": "a b"}}, params={"frame": "sse"})
        assert content(events(framed.text)) == b"a b "


async def test_a_published_streams_id_is_no_runs_to_join(service: Service) -> None:
    await service.published("s", b"x")
    async with service.worker():
        problem(await service.run({"handler": "say", "id": "s", "input": {"text": "a"}}), 409, "run-conflict")


async def test_respond_async_says_where_to_read(service: Service) -> None:
    async with service.worker():
        response = await service.run(
            {"handler": "say", "id": "r", "input": {"text": "a"}}, headers={"prefer": "respond-async"}
        )
        assert response.status_code == 202
        assert response.headers["location"] == "/v1/runs/r"
        assert (await service.client.get(response.headers["location"])).text == "a "  # waits for the claim


async def test_input_that_the_model_rejects_is_a_422_with_paths_and_frees_the_id(service: Service) -> None:
    async with service.worker():
        for _ in range(2):
            refused = await service.run({"handler": "say", "id": "r", "input": {"text": 5}})
            (error,) = problem(refused, 422, "invalid-input")["errors"]
            assert error["path"] == ["text"]
            assert error["type"] == "string_type"
        assert (await service.run({"handler": "say", "id": "r", "input": {"text": "a"}})).text == "a "
        await service.run({"handler": "say", "id": "q", "input": 1}, headers={"prefer": "respond-async"})
        with pytest.raises(httpx.RemoteProtocolError):  # its reader sees an error, not an empty answer
            await service.client.get("/v1/runs/q")
        assert (await service.run({"handler": "say", "id": "q", "input": {"text": "a"}})).text == "a "


@pytest.mark.parametrize("over", ["refused", "deleted"])
async def test_an_id_is_free_before_the_queue_forgets_its_last_run(
    service: Service, monkeypatch: pytest.MonkeyPatch, over: str
) -> None:
    """The worker's ack goes out when the next request has met its command in the queue."""
    met, seen, submit, ack = asyncio.Event(), set(), service.store.runs.submit, MemoryDelivery.ack

    async def submitting(command: Command) -> Command:
        queued = await submit(command)
        if queued.id in seen:
            met.set()
        seen.add(queued.id)
        return queued

    async def late(delivery: MemoryDelivery) -> None:
        await met.wait()
        await ack(delivery)

    monkeypatch.setattr(service.store.runs, "submit", submitting)
    monkeypatch.setattr(MemoryDelivery, "ack", late)
    async with service.worker():
        request = {"handler": "say", "id": "r", "input": {"text": 5 if over == "refused" else "a"}}
        first = await service.run(request)
        if over == "refused":
            problem(first, 422, "invalid-input")
        else:
            assert (await service.client.delete("/v1/runs/r")).status_code == 204
        assert (await service.run(request | {"input": {"text": "b"}})).text == "b "
        assert met.is_set()


async def test_an_unknown_handler_is_a_422_with_the_known_ones(service: Service) -> None:
    async with service.worker():
        response = await service.run({"handler": "sing", "input": {}})
        assert problem(response, 422, "unknown-handler")["known"] == ["hold", "say"]


async def test_no_worker_is_a_503(service: Service) -> None:
    response = await service.run({"handler": "say", "input": {"text": "a"}})
    problem(response, 503, "no-workers")
    assert int(response.headers["retry-after"]) >= 1


async def test_a_run_that_nobody_claims_is_a_504_and_stays_queued() -> None:
    async with serving(claim_timeout=0.05) as service:
        service.store.members.advertise({"say": {}}, lambda: 0)  # a worker that is full
        request = {"handler": "say", "id": "r", "input": {"text": "a"}}
        await service.store.members.settled()
        for _ in range(2):
            response = await service.run(request)
            problem(response, 504, "claim-timeout")
            assert response.headers["location"] == "/v1/runs/r"
        response = await service.client.get("/v1/runs/r")
        problem(response, 504, "claim-timeout")
        problem(await service.run(request | {"input": {}}), 409, "run-conflict")
        status = (await service.client.get("/v1/runs/r/status")).json()
        assert (status["status"], status["incarnation"]) == ("queued", None)
        async with service.worker():
            while (await service.store.status("r")).status is not Status.DONE:
                await asyncio.sleep(0.01)
            assert (await service.run(request)).text == "a "


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid-json"),
        (b"{", 400, "invalid-json"),
        (b"\xff\xfe{", 400, "invalid-json"),
        (b'{"handler": "say", "input": NaN}', 400, "invalid-json"),
        (b'{"handler": "say", "input": 1e999}', 400, "invalid-json"),
        (b"[" * 100_000, 400, "invalid-json"),
        (b'{"handler": "say", "input": ' + b"9" * 5000 + b"}", 400, "invalid-json"),
        (b'{"handler": "say", "input": ' + b"[" * 970 + b"]" * 970 + b"}", 400, "invalid-json"),
        (b"[]", 422, "invalid-request"),
        (b"null", 422, "invalid-request"),
        (b"{}", 422, "invalid-request"),
        (b'{"handler": "say"}', 422, "invalid-request"),
        (b'{"handler": 3, "input": {}}', 422, "invalid-request"),
        (b'{"handler": "say", "input": {}, "inptu": 1}', 422, "invalid-request"),
        (b'{"handler": "say", "input": {}, "ttl": -1}', 422, "invalid-request"),
        (b'{"handler": "say", "input": {}, "ttl": 1e9}', 400, "ttl-too-long"),
        (b'{"handler": "say", "input": {}, "format": "morse"}', 422, "unknown-format"),
        (b'{"handler": "say", "input": {}, "id": ""}', 400, "invalid-id"),
        (b'{"handler": "say", "input": {}, "id": "a\\n"}', 400, "invalid-id"),
        (b'{"handler": "say", "input": {}, "id": "a b"}', 400, "invalid-id"),
        (b'{"handler": "say", "input": {}, "id": 7}', 400, "invalid-id"),
        (b'{"handler": "\\ud800", "input": {}}', 422, "invalid-request"),
        (b'{"handler": "say", "input": {"text": "\\ud800"}}', 422, "invalid-input"),
    ],
)
async def test_a_bad_request_is_refused(service: Service, body: bytes, status: int, code: str) -> None:
    async with service.worker():
        response = await service.client.post("/v1/runs", content=body, headers={"content-type": "application/json"})
        told = problem(response, status, code)
        if code == "invalid-request":
            assert all(error["message"] for error in told["errors"])
        assert not {"RunRequest", "sys."} & set(response.text.replace("(", " ").split())


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_another_content_type_is_a_415(service: Service, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    problem(await service.client.post("/v1/runs", content=b"{}", headers=headers), 415, "unsupported-media-type")


async def test_an_encoded_body_is_a_415(service: Service) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = await service.client.post("/v1/runs", content=gzip.compress(b"{}"), headers=headers)
    problem(response, 415, "unsupported-media-type")


async def test_an_input_is_queued_no_longer_than_it_came(service: Service) -> None:
    service.store.members.advertise({"say": {}}, lambda: 0)
    await service.store.members.settled()
    body = json.dumps({"handler": "say", "id": "r", "input": {"text": "\u8a9e" * 1000}}, ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "prefer": "respond-async"}
    assert (await service.client.post("/v1/runs", content=body, headers=headers)).status_code == 202
    queued = await service.store.runs.find("r")
    assert queued is not None
    assert len(queued.input) < len(body)


async def test_only_the_preference_itself_is_answered_at_once(service: Service) -> None:
    async with service.worker():
        request = {"handler": "say", "input": {"text": "a"}}
        for prefer in ("x-respond-async", "respond-async=no", 'wait="respond-async"'):
            assert (await service.run(request, headers={"prefer": prefer})).status_code == 200
        for several in (["Respond-Async"], ["wait=1, respond-async;x"], ["wait=1", "respond-async"]):
            headers = httpx.Headers([("prefer", prefer) for prefer in several])
            assert (await service.run(request, headers=headers)).status_code == 202


async def test_a_large_body_is_a_413_by_its_length_and_by_its_bytes() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 600

    async with serving(max_request_bytes=1000) as service:
        kind = {"content-type": "application/json"}
        for body in (b" " * 1001, parts()):
            response = await service.client.post("/v1/runs", content=body, headers=kind)
            assert problem(response, 413, "request-too-large")["setting"] == "TAILRACE_MAX_REQUEST_BYTES"


# ---------------------------------------------------------------- status, cancel, delete


async def test_status_says_what_a_stream_is(service: Service) -> None:
    await service.published("s", b"abc", end=None, content_type="text/plain")
    status = (await service.client.get("/v1/runs/s/status")).json()
    cursor = (await service.store.status("s")).cursor
    assert status | {"created_at": "", "expires_at": "", "incarnation": ""} == {
        "id": "s",
        "status": "streaming",
        "cursor": cursor,
        "bytes": 3,
        "entries": 1,
        "incarnation": "",
        "epoch": 1,
        "content_type": "text/plain",
        "created_at": "",
        "expires_at": "",
    }
    assert status["created_at"].endswith("Z")
    assert status["created_at"] < status["expires_at"]
    await service.store.finalize("s", "error", "told why", code="my-code")
    status = (await service.client.get("/v1/runs/s/status")).json()
    assert (status["status"], status["code"], status["message"]) == ("error", "my-code", "told why")


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "", 200, b"a b "),
        ("GET", "/status", 200, b'"status":"done"'),
        ("POST", "/cancel", 200, b'"status":"done"'),
        ("DELETE", "", 204, b""),
    ],
)
async def test_a_run_that_came_and_went_between_two_looks_is_found(
    service: Service, monkeypatch: pytest.MonkeyPatch, method: str, path: str, status: int, body: bytes
) -> None:
    """First there is no stream, for the run waits; then nothing waits, for it has run."""
    service.store.members.advertise({"say": {}}, lambda: 0)
    await service.store.members.settled()
    request = {"handler": "say", "id": "r", "input": {"text": "a b"}}
    assert (await service.run(request, headers={"prefer": "respond-async"})).status_code == 202
    find = service.store.runs.find

    async def find_late(stream_id: str) -> Command | None:
        monkeypatch.undo()
        async with service.worker():
            while await find(stream_id) is not None:
                await asyncio.sleep(0.01)
        return await find(stream_id)

    monkeypatch.setattr(service.store.runs, "find", find_late)
    response = await service.client.request(method, f"/v1/runs/r{path}")
    assert response.status_code == status, response.text
    assert body in response.content


async def test_cancel_reaches_the_worker_of_a_live_run(service: Service) -> None:
    async with service.worker():
        async with service.client.stream(
            "POST", "/v1/runs", json={"handler": "hold", "id": "r", "input": {"text": "hi"}}
        ) as response:
            cancelled = await service.client.post("/v1/runs/r/cancel")
            assert cancelled.status_code == 202
            with pytest.raises(httpx.RemoteProtocolError):
                await response.aread()
        status = (await service.client.get("/v1/runs/r/status")).json()
        assert (status["status"], status["code"]) == ("cancelled", "cancelled")
        again = await service.client.post("/v1/runs/r/cancel")
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")


async def test_cancel_of_a_queued_run_is_a_record(service: Service) -> None:
    service.store.members.advertise({"hold": {}}, lambda: 0)
    await service.store.members.settled()
    request = {"handler": "hold", "id": "r", "input": {"text": "hi"}}
    assert (await service.run(request, headers={"prefer": "respond-async"})).status_code == 202
    response = await service.client.post("/v1/runs/r/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    async with service.worker():
        while await service.store.runs.find("r") is not None:
            await asyncio.sleep(0.01)
    assert (await service.store.status("r")).entries == 0


async def test_cancel_of_a_run_whose_owner_is_lost_is_a_record() -> None:
    broker = MemoryBroker()
    async with serving(broker) as service:
        dead = MemoryStore(lease_ttl=LEASE_TTL, broker=broker)  # never started: it does not beat
        await dead.acquire("r", run=RunRef("hold", "digest", "1", policy="continue"))
        service.store.members.is_lost(dead.members.id)
        while not service.store.members.is_lost(dead.members.id):
            await asyncio.sleep(0.05)
        response = await service.client.post("/v1/runs/r/cancel")
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")


async def test_cancel_of_a_stream_without_a_run_fences_its_publisher(service: Service) -> None:
    await service.published("s", b"x", end=None)
    response = await service.client.post("/v1/runs/s/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    ended = await service.client.post("/v1/runs/s/cancel")
    assert ended.status_code == 200


async def test_delete_frees_the_id(service: Service) -> None:
    async with service.worker():
        request = {"handler": "say", "id": "r", "input": {"text": "a"}}
        await service.run(request)
        assert (await service.client.delete("/v1/runs/r")).status_code == 204
        assert (await service.client.get("/v1/runs/r")).status_code == 404
        assert (await service.client.delete("/v1/runs/r")).status_code == 404
        assert (await service.run(request | {"input": {"text": "b"}})).text == "b "


async def test_delete_of_a_queued_run_keeps_it_from_ever_running(service: Service) -> None:
    service.store.members.advertise({"say": {}}, lambda: 0)
    await service.store.members.settled()
    request = {"handler": "say", "id": "r", "input": {"text": "a"}}
    await service.run(request, headers={"prefer": "respond-async"})
    assert (await service.client.delete("/v1/runs/r")).status_code == 204
    async with service.worker():
        while await service.store.runs.find("r") is not None:
            await asyncio.sleep(0.01)
    assert (await service.client.get("/v1/runs/r")).status_code == 404


async def test_delete_of_a_live_run_stops_its_worker(service: Service) -> None:
    async with service.worker() as worker:
        request = {"handler": "hold", "id": "r", "input": {"text": "hi"}}
        async with service.client.stream("POST", "/v1/runs", json=request) as response:
            assert (await service.client.delete("/v1/runs/r")).status_code == 204
            with pytest.raises(httpx.RemoteProtocolError):
                await response.aread()
        while worker.runner.free_slots != worker.runner.slots:
            await asyncio.sleep(0.01)


async def test_an_id_whose_deleted_run_still_stops_is_missing_not_a_fault(service: Service) -> None:
    # what a worker that is slow to stop leaves for a while: the deleted run's command is still queued
    service.store.members.advertise({"say": {}}, lambda: 0)
    await service.store.members.settled()
    await service.run({"handler": "say", "id": "r", "input": {"text": "a"}}, headers={"prefer": "respond-async"})
    assert (await service.client.delete("/v1/runs/r")).status_code == 204
    assert await service.store.runs.find("r") is not None
    assert (await service.client.delete("/v1/runs/r")).status_code == 404
    assert (await service.client.post("/v1/runs/r/cancel")).status_code == 404


async def test_a_joined_run_that_was_over_and_deleted_before_it_was_followed_runs_anew(service: Service) -> None:
    service.store.members.advertise({"say": {}}, lambda: 0)
    await service.store.members.settled()
    request = {"handler": "say", "id": "r", "input": {"text": "a"}}
    await service.run(request, headers={"prefer": "respond-async"})
    await service.client.delete("/v1/runs/r")
    joining = asyncio.create_task(service.run(request))
    async with service.worker():  # which acknowledges the deleted run's command, and never runs it
        assert (await joining).text == "a "


async def test_a_queued_run_of_a_freed_id_has_nothing_of_the_life_before(service: Service) -> None:
    await service.published("r", b"abc")
    await service.store.delete("r")
    service.store.members.advertise({"say": {}}, lambda: 0)
    await service.store.members.settled()
    await service.run({"handler": "say", "id": "r", "input": {"text": "a"}}, headers={"prefer": "respond-async"})
    told = (await service.client.get("/v1/runs/r/status")).json()
    assert (told["status"], told["bytes"], told["incarnation"], told["created_at"]) == ("queued", 0, None, None)


# ---------------------------------------------------------------- limits, drain, trouble


async def test_too_many_readers_is_a_503() -> None:
    async with serving(max_readers=1) as service:
        await service.published("s", b"x", end=None)
        async with service.client.stream("GET", "/v1/runs/s"):
            response = await service.client.get("/v1/runs/s")
            assert problem(response, 503, "too-many-readers")["setting"] == "TAILRACE_MAX_READERS"
            assert int(response.headers["retry-after"]) >= 1
            await service.store.finalize("s", "done")
        assert (await service.client.get("/v1/runs/s")).content == b"x"


async def test_a_stuck_reader_is_cut_off_and_others_go_on() -> None:
    chunk, chunks = b"x" * 100_000, 100
    async with serving(max_reader_lag_bytes=500_000, send_buffer=4096, write_buffer=4096) as service:
        await service.published("s", b"x", end=None)
        reader, writer = await asyncio.open_connection("127.0.0.1", service.server.bound_port, limit=1024)
        writer.write(b"GET /v1/runs/s HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n")  # and no more: its buffers fill
        got = 0
        async with service.client.stream("GET", "/v1/runs/s") as healthy:
            async for part in healthy.aiter_raw():
                got += len(part)
                if got == 1 + chunks * len(chunk):
                    await service.store.finalize("s", "done")
                elif got % len(chunk) == 1:  # it has everything: the next one
                    await service.store.append("s", chunk)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_a_client_that_leaves_is_forgotten(service: Service) -> None:
    await service.published("s", b"x", end=None)
    for _ in range(20):
        async with service.client.stream("GET", "/v1/runs/s") as response:
            async for _ in response.aiter_raw():
                break
    while service.server.server_state.tasks:
        await asyncio.sleep(0.01)


async def test_a_client_that_leaves_before_the_claim_is_forgotten(service: Service) -> None:
    service.store.members.advertise({"hold": {}}, lambda: 0)
    await service.store.members.settled()
    waiting = asyncio.create_task(service.run({"handler": "hold", "id": "r", "input": {"text": "a"}}))
    while await service.store.runs.find("r") is None:
        await asyncio.sleep(0.01)
    waiting.cancel()
    while service.server.server_state.tasks:
        await asyncio.sleep(0.01)
    assert (await service.client.get("/v1/runs/r/status")).json()["status"] == "queued"


async def test_a_drain_tells_every_reader_to_go_on_elsewhere() -> None:
    async with serving() as service:
        await service.published("s", b"abc", end=None)
        service.store.members.advertise({"hold": {}}, lambda: 0)
        await service.store.members.settled()
        plain, framed = service.client.stream("GET", "/v1/runs/s"), service.client.stream("GET", "/v1/runs/s?frame=sse")
        waiting = asyncio.create_task(service.run({"handler": "hold", "id": "r", "input": {"text": "a"}}))
        while await service.store.runs.find("r") is None:
            await asyncio.sleep(0.01)
        async with plain as raw, framed as sse:
            service.server.begin_drain()
            with pytest.raises(httpx.RemoteProtocolError):
                await raw.aread()
            last = events((await sse.aread()).decode())[-1]
        assert last["event"] == "error"
        assert json.loads(last["data"])["code"] == "draining"
        assert json.loads(last["data"])["cursor"] == (await service.store.status("s")).cursor
        response = await waiting
        problem(response, 503, "draining")
        assert response.headers["location"] == "/v1/runs/r"


async def test_a_broker_that_is_away_is_a_503(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise BrokerUnavailable("The broker does not answer", retry_after=3)

    async with service.worker():
        for name in ("status", "open"):
            monkeypatch.setattr(service.store, name, away)
        requests = [
            service.client.get("/v1/runs/s"),
            service.client.get("/v1/runs/s/status"),
            service.run({"handler": "say", "id": "s", "input": {}}),
        ]
        for response in await asyncio.gather(*requests):
            problem(response, 503, "broker-unavailable")
            assert response.headers["retry-after"] == "3"
        problem(await service.client.get("/readyz"), 503, "not-ready")
        assert (await service.client.get("/healthz")).status_code == 200
        assert (await service.client.head("/healthz")).status_code == 200
        monkeypatch.undo()
        assert (await service.client.get("/readyz")).json() == {"status": "ready"}


async def test_a_broker_that_hangs_is_a_503_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    async with serving(request_timeout=0.05) as service:
        monkeypatch.setattr(service.store, "status", hang)
        problem(await service.client.get("/v1/runs/s/status"), 503, "broker-unavailable")


async def test_an_unexpected_error_shows_an_id_and_nothing_else(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    structlog.reset_defaults()  # as where this is embedded

    async def broken(*_: Any, **__: Any) -> Any:
        local = "".join(("a ", "key"))
        raise ZeroDivisionError(f"secret detail {len(local)}")

    monkeypatch.setattr(service.store, "status", broken)
    response = await service.client.get("/v1/runs/s/status")
    problem(response, 500, "internal")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    logged = capsys.readouterr().out
    assert "ZeroDivisionError: secret detail 5" in logged
    assert "a key" not in logged


# ---------------------------------------------------------------- the rest of the surface


async def test_the_description_needs_no_other_address(service: Service) -> None:
    page = (await service.client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    api = (await service.client.get("/openapi.json")).json()
    paths = {path: set(verbs) for path, verbs in api["paths"].items()}
    assert paths["/v1/runs"] == {"get", "post"}
    assert paths["/v1/runs/{id}"] == {"get", "delete"}
    members = api["components"]["schemas"]["Problem"]["properties"]
    assert all(member["description"] for member in members.values())
    assert {"/v1/runs/{id}/status", "/v1/runs/{id}/cancel", "/healthz", "/readyz"} <= set(paths)
    assert {parameter["name"] for parameter in api["paths"]["/v1/runs/{id}"]["get"]["parameters"]} == {
        "id",
        "cursor",
        "offset",
        "incarnation",
        "frame",
        "Last-Event-ID",
    }


async def test_what_is_not_there_is_a_problem_too(service: Service) -> None:
    problem(await service.client.get("/nowhere"), 404, "not-found")
    problem(await service.client.put("/v1/runs"), 405, "method-not-allowed")
    problem(await service.client.post("/v1/runs/s"), 405, "method-not-allowed")
    problem(await service.client.get("/v1/runs?limit=x"), 400, "invalid-parameter")


async def test_the_list_is_bounded(service: Service) -> None:
    for number in range(5):
        await service.published(f"s{number}", b"x")
    assert len((await service.client.get("/v1/runs?limit=3")).json()["runs"]) == 3
    assert len((await service.client.get("/v1/runs")).json()["runs"]) == 5


@pytest.mark.parametrize(
    ("origins", "allowed"), [("*", "*"), ("https://a.example, https://b.example", "https://b.example")]
)
async def test_browsers_of_allowed_origins_may_read_everything(origins: str, allowed: str) -> None:
    async with serving(cors_origins=origins) as service:
        await service.published("s", b"x")
        preflight = await service.client.options(
            "/v1/runs",
            headers={
                "origin": "https://b.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": "content-type,prefer",
            },
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "content-type,prefer"
        assert "DELETE" in preflight.headers["access-control-allow-methods"]
        for path in ("/v1/runs/s", "/v1/runs/s?frame=sse", "/v1/runs/nothing", "/v1/runs/s?cursor=x"):
            response = await service.client.get(path, headers={"origin": "https://b.example"})
            assert response.headers["access-control-allow-origin"] == allowed
            exposed = {name.strip().lower() for name in response.headers["access-control-expose-headers"].split(",")}
            assert {"x-resumable-stream-id", "tailrace-incarnation", "location", "aui-replay-content-length"} <= exposed
        if allowed != "*":
            other = await service.client.get("/v1/runs/s", headers={"origin": "https://c.example"})
            assert "access-control-allow-origin" not in other.headers
            refused = await service.client.options(
                "/v1/runs", headers={"origin": "https://c.example", "access-control-request-method": "POST"}
            )
            assert refused.status_code == 403


async def test_no_origin_is_allowed_by_default(service: Service) -> None:
    await service.published("s", b"x")
    response = await service.client.get("/v1/runs/s", headers={"origin": "https://a.example"})
    assert "access-control-allow-origin" not in response.headers
