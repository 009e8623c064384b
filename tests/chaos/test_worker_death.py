"""A worker dies, or sleeps past its lease: its runs end as producer-lost, and nothing is added to them afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tailrace.testing.clients import HttpReader, Reading, sample_text, start_run, status_of
from tailrace.testing.processes import Service, Services, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

TEXT = sample_text(1, 200_000)
ECHO = {"text": TEXT, "rate": 20, "chunk": 40}  # more than 4 minutes: it never comes to its end here


async def begun(client: httpx.AsyncClient, gateway: Service, run_id: str, least: int = 1) -> dict[str, Any]:
    """The run's status, once it has that many entries."""
    while (told := await status_of(client, gateway.url, run_id))["entries"] < least:
        await asyncio.sleep(0.05)
    return told


async def ended(client: httpx.AsyncClient, gateway: Service, run_id: str) -> dict[str, Any]:
    while (told := await status_of(client, gateway.url, run_id))["status"] in ("queued", "streaming"):
        await asyncio.sleep(0.05)
    return told


async def test_readers_of_a_killed_worker_are_told(services: Services, client: httpx.AsyncClient) -> None:
    gateway, worker = services.gateway(), services.worker()
    await services.start(gateway, worker)
    await start_run(client, gateway.url, "run", ECHO)
    readers = [HttpReader(client, gateway.url, "run", sse=sse) for sse in (False, True)]
    async with Reading(*readers) as reading:
        await reading.until(lambda: all(len(reader.data) > 200 for reader in readers), "both are well in it")

        worker.kill()

        await reading.over()
    told = await ended(client, gateway, "run")
    assert (told["status"], told["code"], told["epoch"]) == ("producer-lost", "producer-lost", 2)
    for reader in readers:
        assert reader.ending == "producer-lost"
        assert len(reader.data) == told["bytes"]
        assert TEXT.encode().startswith(reader.data)


async def test_another_worker_ends_a_run_that_nobody_reads(services: Services, client: httpx.AsyncClient) -> None:
    gateway, worker, other = services.gateway(), services.worker(), services.worker()
    await services.start(gateway, worker)
    await start_run(client, gateway.url, "run", ECHO)
    await begun(client, gateway, "run")
    await services.start(other)

    worker.kill()

    # whoever asks for the status would notice the loss too: nobody asks before the other worker has ended it
    await until(lambda: "producer-lost" in other.log, "the other worker ends the run")
    told = await ended(client, gateway, "run")
    assert told["status"] == "producer-lost"
    reader = await HttpReader(client, gateway.url, "run").run()
    assert (reader.ending, len(reader.data)) == ("producer-lost", told["bytes"])
    assert TEXT.encode().startswith(reader.data)


async def test_a_reader_that_comes_later_is_told_too(services: Services, client: httpx.AsyncClient) -> None:
    """No worker is left: it is the reader's gateway that notices."""
    gateway, worker = services.gateway(), services.worker()
    await services.start(gateway, worker)
    await start_run(client, gateway.url, "run", ECHO)
    await begun(client, gateway, "run")

    worker.kill()

    reader = await HttpReader(client, gateway.url, "run").run()
    assert reader.ending == "producer-lost"
    assert TEXT.encode().startswith(reader.data)


async def test_a_command_that_no_worker_claimed_outlives_all_workers(
    services: Services, client: httpx.AsyncClient
) -> None:
    """The only worker is full and dies; what was queued behind its runs is executed by the next one."""
    gateway, worker, other = services.gateway(), services.worker("--slots", "1"), services.worker()
    await services.start(gateway, worker)
    await start_run(client, gateway.url, "running", ECHO)
    await begun(client, gateway, "running")
    await start_run(client, gateway.url, "queued", {"text": TEXT})
    assert (await status_of(client, gateway.url, "queued"))["status"] == "queued"

    worker.kill()
    await services.start(other)

    reader = await HttpReader(client, gateway.url, "queued").run()
    assert (reader.ending, reader.data) == ("done", TEXT.encode())
    assert (await ended(client, gateway, "running"))["status"] == "producer-lost"


async def test_a_worker_that_slept_past_its_lease_adds_nothing(services: Services, client: httpx.AsyncClient) -> None:
    gateway, worker = services.gateway(), services.worker()
    await services.start(gateway, worker)
    await start_run(client, gateway.url, "run", ECHO)
    reader = HttpReader(client, gateway.url, "run")
    async with Reading(reader) as reading:
        await reading.until(lambda: len(reader.data) > 200, "the reader is well in it")

        worker.pause()
        await reading.over()
    told = await ended(client, gateway, "run")
    worker.resume()
    await until(lambda: "run-fenced" in worker.log, "the worker was fenced")

    assert reader.ending == told["status"] == "producer-lost"
    after = await status_of(client, gateway.url, "run")
    assert (after["bytes"], after["entries"], after["epoch"]) == (told["bytes"], told["entries"], told["epoch"])
    again = await HttpReader(client, gateway.url, "run").run()
    assert again.data == reader.data
    assert TEXT.encode().startswith(reader.data)

    await start_run(client, gateway.url, "next", {"text": "still of use"})  # by the same worker
    assert (await HttpReader(client, gateway.url, "next").run()).data == b"still of use"
