"""Every limit as a client meets it: over HTTP, at real services on a real broker."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from tailrace.testing.clients import HttpReader, Reading, new_client, sample_text, start_run, status_of
from tailrace.testing.processes import Service, Services, until
from tailrace.testing.servers import NatsServer

PROBLEM = "application/problem+json"
HANDLERS = '''
"""Handlers of these tests: one that writes much, one that waits for a file."""
import asyncio, random
from collections.abc import AsyncIterator
from pathlib import Path
from pydantic import BaseModel
from tailrace.worker import handler

class Flood(BaseModel):
    parts: int
    size: int

@handler("flood")
async def flood(input: Flood) -> AsyncIterator[bytes]:
    chance = random.Random(7)
    for _ in range(input.parts):
        yield chance.randbytes(input.size)

opened = None

async def look():
    while not Path("gate").exists():
        await asyncio.sleep(0.05)

class Text(BaseModel):
    text: str

@handler("gate")
async def gate(input: Text) -> AsyncIterator[str]:
    global opened
    yield input.text[:5]
    if opened is None:
        opened = asyncio.create_task(look())
    await asyncio.shield(opened)
    yield input.text[5:]
'''


@pytest.fixture
async def start(tmp_path: Path, nats_server: NatsServer) -> AsyncIterator[Callable[..., Services]]:
    """Services with settings; the caller starts what it needs."""
    made: list[Services] = []

    def make(**settings: object) -> Services:
        folder = tmp_path / "services"
        folder.mkdir(exist_ok=True)
        (folder / "limit_handlers.py").write_text(HANDLERS)
        made.append(Services(folder, nats_server.url, os.environ, **settings))
        return made[-1]

    yield make
    for services in made:
        await services.close()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with new_client() as running:
        yield running


async def pair(services: Services, *arguments: str) -> tuple[Service, Service]:
    """A gateway and a worker, started."""
    gateway, worker = services.gateway(), services.worker(*arguments)
    await services.start(gateway, worker)
    return gateway, worker


def handlers_of_these_tests() -> tuple[str, ...]:
    return ("--handlers", "limit_handlers:flood", "--handlers", "limit_handlers:gate")


async def ended(client: httpx.AsyncClient, gateway: Service, run_id: str) -> dict[str, Any]:
    while (told := await status_of(client, gateway.url, run_id))["status"] in ("queued", "streaming"):
        await asyncio.sleep(0.05)
    return told


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """A refusal in full: its status, type and code, what happened and what to do."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == PROBLEM
    told: dict[str, Any] = response.json()
    assert (told["status"], told["code"]) == (status, code)
    assert told["detail"]
    assert told["hint"]
    assert "Traceback" not in response.text
    return told


@pytest.mark.parametrize(
    ("settings", "code", "entries", "octets"),
    [({"MAX_ENTRIES": 50}, "too-many-entries", 50, 500), ({"MAX_STREAM_BYTES": 505}, "stream-too-large", 50, 500)],
)
async def test_a_stream_that_grows_over_its_limit_ends_with_that_error(
    start: Any, client: httpx.AsyncClient, settings: dict[str, int], code: str, entries: int, octets: int
) -> None:
    gateway, _ = await pair(start(**settings))
    text = "0123456789" * 100
    await start_run(client, gateway.url, "run", {"text": text, "chunk": 10, "rate": 200})
    plain, sse = HttpReader(client, gateway.url, "run"), HttpReader(client, gateway.url, "run", sse=True)
    async with Reading(plain, sse) as reading:
        await reading.over()

    assert plain.ending == sse.ending == code
    assert plain.data == sse.data == text[:octets].encode()
    told = await status_of(client, gateway.url, "run")
    assert (told["status"], told["code"], told["entries"], told["bytes"]) == ("error", code, entries, octets)
    assert told["message"]


async def test_a_chunk_over_the_limit_is_split_not_refused(start: Any, client: httpx.AsyncClient) -> None:
    gateway, _ = await pair(start(MAX_CHUNK_BYTES=1000))
    text = sample_text(3, 5000)
    await start_run(client, gateway.url, "run", {"text": text, "chunk": 5000})
    plain, sse = HttpReader(client, gateway.url, "run"), HttpReader(client, gateway.url, "run", sse=True)
    async with Reading(plain, sse) as reading:
        await reading.over()

    assert plain.data == sse.data == text.encode()
    assert plain.ending == "done"
    told = await status_of(client, gateway.url, "run")
    assert told["entries"] >= told["bytes"] / 1000 > 1


async def test_a_full_broker_ends_runs_truly_and_loses_none(
    start: Any, client: httpx.AsyncClient, nats_server: NatsServer
) -> None:
    gateway, worker = await pair(start(MAX_TOTAL_BYTES="64KiB", NATS_SHARDS=1, CLAIM_TIMEOUT=1, LEASE_TTL=10))
    text = sample_text(5, 40_000)
    runs = [f"run-{number}" for number in range(4)]
    for run_id in runs:
        await start_run(client, gateway.url, run_id, {"text": text, "chunk": 20, "rate": 40})
    async with Reading(*(HttpReader(client, gateway.url, run_id) for run_id in runs)) as reading:
        await until(lambda: worker.log.count("ending-not-stored") >= len(runs), "not even an ending fits")
        late = await client.post(
            f"{gateway.url}/v1/runs", json={"id": "late", "handler": "echo", "input": {"text": text}}
        )
        assert_problem(late, 504, "claim-timeout")
        assert late.headers["location"] == "/v1/runs/late"
        assert not reading.any_over

        broker = await nats.connect(nats_server.url)
        config = (await broker.jetstream().stream_info("TAILRACE_S_00")).config
        config.max_bytes = -1
        await broker.jetstream().update_stream(config)
        await broker.close()
        await reading.over()

    for reader in reading.readers:
        told = await status_of(client, gateway.url, reader.run_id)
        assert reader.ending == told["code"] == "storage-full"
        assert told["status"] == "error"
        assert len(reader.data) == told["bytes"]
        assert text.encode().startswith(reader.data)
    assert (await HttpReader(client, gateway.url, "late").run()).data == text.encode()


async def test_a_run_over_the_number_of_streams_waits_for_its_turn(start: Any, client: httpx.AsyncClient) -> None:
    gateway, _ = await pair(start(MAX_STREAMS=2, CLAIM_TIMEOUT=1, LEASE_TTL=2))
    for run_id in ("one", "two"):
        await start_run(client, gateway.url, run_id, {"text": run_id})
        await ended(client, gateway, run_id)
    third = await client.post(f"{gateway.url}/v1/runs", json={"id": "three", "handler": "echo", "input": {"text": "3"}})
    assert_problem(third, 504, "claim-timeout")
    assert third.headers["location"] == "/v1/runs/three"
    assert (await status_of(client, gateway.url, "three"))["status"] == "queued"

    assert (await client.delete(f"{gateway.url}/v1/runs/one")).status_code == 204
    reader = await HttpReader(client, gateway.url, "three").run()
    assert (reader.ending, reader.data) == ("done", b"3")


async def test_one_reader_too_many_is_sent_elsewhere(start: Any, client: httpx.AsyncClient) -> None:
    services = start(MAX_READERS=3)
    gateway, worker = await pair(services, *handlers_of_these_tests())
    await start_run(client, gateway.url, "run", {"text": "first and last"}, "gate")
    readers = [HttpReader(client, gateway.url, "run", sse=number == 0) for number in range(3)]
    async with Reading(*readers) as reading:
        await reading.begun()
        refused = await client.get(f"{gateway.url}/v1/runs/run")
        told = assert_problem(refused, 503, "too-many-readers")
        assert told["setting"] == "TAILRACE_MAX_READERS"
        assert int(refused.headers["retry-after"]) >= 1

        fourth = HttpReader(client, gateway.url, "run")  # it comes again until there is room
        reading.add(fourth)
        (worker.folder / "gate").touch()
        await reading.over()
    assert {bytes(reader.data) for reader in [*readers, fourth]} == {b"first and last"}


PARTS, SIZE = 96, 256 * 1024  # 24 MiB
SLOW = 16


async def stuck(gateway: Service, run_id: str) -> tuple[socket.socket, bytes]:
    """A client that asks for the run, reads a little and then nothing. The socket, and what it read."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.setblocking(False)
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    await loop.sock_connect(client, (host, int(port)))
    await loop.sock_sendall(client, f"GET /v1/runs/{run_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client, await loop.sock_recv(client, 4096)


async def rest_of(client: socket.socket) -> bytes:
    """What was still on its way to a client that was cut off."""
    loop, found = asyncio.get_running_loop(), bytearray()
    try:
        while part := await loop.sock_recv(client, 1 << 20):
            found += part
    except ConnectionError:
        pass
    finally:
        client.close()
    return bytes(found)


def body_of(answer: bytes) -> bytes:
    """The bytes of a chunked body that was cut anywhere."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    body = bytearray()
    while rest:
        size, separator, rest = rest.partition(b"\r\n")
        if not separator:
            break
        assert int(size, 16) > 0, "a clean end would be a lie"
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return bytes(body)


async def test_a_reader_that_stops_reading_is_cut_off_and_resumes(start: Any, client: httpx.AsyncClient) -> None:
    services = start(MAX_READER_LAG_BYTES="4MiB", USER_TIMEOUT=600)
    gateway, worker = await pair(services, *handlers_of_these_tests())
    before = gateway.resident_bytes()
    await start_run(client, gateway.url, "gated", {"text": "ready when you are"}, "gate")
    readers = [HttpReader(client, gateway.url, "flood", sse=number == 0) for number in range(3)]
    stuck_ones: list[tuple[socket.socket, bytes]] = []
    async with Reading(HttpReader(client, gateway.url, "gated")) as others:
        await others.begun()
        await start_run(client, gateway.url, "flood", {"parts": PARTS, "size": SIZE}, "flood")
        stuck_ones = await asyncio.gather(*(stuck(gateway, "flood") for _ in range(SLOW)))
        async with Reading(*readers) as reading:
            await reading.over()
        await until(lambda: "reader-aborted" in gateway.log or "slow-reader" in gateway.log, "somebody was cut off")
        held = gateway.resident_bytes() - before
        (worker.folder / "gate").touch()
        await others.over()

    expected = readers[0].data
    assert len(expected) == PARTS * SIZE
    assert {reader.sha256 for reader in readers} == {hashlib.sha256(expected).hexdigest()}
    # the stream itself is held once, its joined and framed parts for a moment; 16 whole backlogs would be 384 MiB
    assert held < 2.5 * PARTS * SIZE + SLOW * 4 * 256 * 1024 + 64 * 1024 * 1024

    for connection, first in stuck_ones:
        answer = first + await rest_of(connection)
        reader = HttpReader(client, gateway.url, "flood")
        reader.data += body_of(answer)
        assert expected.startswith(reader.data)
        assert len(reader.data) < len(expected)
        await reader.run()
        assert reader.data == expected


async def test_what_a_request_may_be(start: Any, client: httpx.AsyncClient) -> None:
    gateway, _ = await pair(start(MAX_REQUEST_BYTES="4KiB", MAX_TTL=100, DEFAULT_TTL=100))
    runs = f"{gateway.url}/v1/runs"

    large = await client.post(runs, json={"handler": "echo", "input": {"text": "x" * 5000}})
    assert assert_problem(large, 413, "request-too-large")["setting"] == "TAILRACE_MAX_REQUEST_BYTES"

    async def without_length() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * 1000

    chunked = await client.post(runs, content=without_length(), headers={"content-type": "application/json"})
    assert_problem(chunked, 413, "request-too-large")
    old = await client.post(runs, json={"handler": "echo", "input": {"text": "x"}, "ttl": 101})
    assert assert_problem(old, 400, "ttl-too-long")["setting"] == "TAILRACE_MAX_TTL"
    long = await client.get(f"{runs}/x?cursor={'y' * 40_000}")
    assert long.status_code == 431
    assert (await client.get(f"{gateway.url}/readyz")).status_code == 200


async def test_an_input_that_no_message_of_the_broker_holds(start: Any, client: httpx.AsyncClient) -> None:
    """Just below the largest request: the command has headers beside it. Whoever reads meanwhile reads on."""
    gateway, _ = await pair(start())
    reader = HttpReader(client, gateway.url, "read")
    async with client.stream("POST", f"{gateway.url}/v1/runs", json=echo("read", "x" * 20, rate=40)) as answer:
        large = await client.post(f"{gateway.url}/v1/runs", json=echo("large", "x" * 1_048_480))
        assert_problem(large, 413, "run-too-large")
        reader.data += await answer.aread()
    assert reader.data == b"x" * 20
    assert (await client.get(f"{gateway.url}/v1/runs/large")).status_code == 404


def echo(run_id: str, text: str, rate: float = 0) -> dict[str, Any]:
    return {"id": run_id, "handler": "echo", "input": {"text": text, "chunk": 1, "rate": rate}}


@pytest.mark.parametrize("bad", ["a%0A", "a%0D%0A", "x" * 257, "a%20b", "%C3%A4", "a%00", "a%2Fb", "..%2F..", "a*"])
async def test_a_bad_id_is_refused_wherever_it_stands(
    bad: str, start: Any, client: httpx.AsyncClient, nats_server: NatsServer
) -> None:
    gateway = start().gateway()
    await asyncio.to_thread(gateway.start)
    url = f"{gateway.url}/v1/runs"
    answers = [
        await client.get(f"{url}/{bad}"),
        await client.head(f"{url}/{bad}"),
        await client.get(f"{url}/{bad}/status"),
        await client.post(f"{url}/{bad}/cancel"),
        await client.delete(f"{url}/{bad}"),
        await client.post(url, json={"id": httpx.URL(f"http://x/{bad}").path[1:], "handler": "echo", "input": {}}),
    ]
    for answer in answers:
        assert answer.status_code == 400, answer.request.url
        if answer.request.method != "HEAD":
            assert "must match /^[A-Za-z0-9_.:-]{1,256}$/" in assert_problem(answer, 400, "invalid-id")["detail"]


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_1500_runs_at_once(start: Any, client: httpx.AsyncClient) -> None:
    services = start()
    gateway = services.gateway()
    workers = [services.worker(*handlers_of_these_tests(), "--slots", "1000") for _ in range(2)]
    await services.start(gateway, *workers)
    texts = {f"run-{number}": sample_text(number, 40) for number in range(1500)}
    some = asyncio.Semaphore(50)

    async def submit(run_id: str) -> None:
        async with some:
            await start_run(client, gateway.url, run_id, {"text": texts[run_id]}, "gate")

    async with asyncio.TaskGroup() as submitting:
        for run_id in texts:
            submitting.create_task(submit(run_id))

    async def states() -> Counter[str]:
        every = (await client.get(f"{gateway.url}/v1/runs?limit=2000")).json()["runs"]
        return Counter(one["status"] for one in every)

    while (now := await states()) != {"streaming": 1500}:  # all of them at once: each waits for the gate
        assert set(now) <= {"streaming"}, now
        await asyncio.sleep(0.2)
    (workers[0].folder / "gate").touch()
    while (now := await states()) != {"done": 1500}:
        assert set(now) <= {"streaming", "done"}, now
        await asyncio.sleep(0.2)

    async def read(run_id: str) -> str:
        async with some:
            return (await HttpReader(client, gateway.url, run_id).run()).sha256

    found = await asyncio.gather(*(read(run_id) for run_id in texts))
    assert found == [hashlib.sha256(text.encode()).hexdigest() for text in texts.values()]
