"""Whatever is killed, an accepted run runs: it ends as done with all its text, or truly as lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from tailrace.testing.clients import BUSY, PAUSE, HttpReader, Reading, sample_text
from tailrace.testing.processes import Services

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400)]

RUNS, AT_ONCE, KILLS, SEED = 400, 25, 10, 1


async def submit(client: httpx.AsyncClient, base: str, run_id: str, text: str) -> None:
    """Have it accepted, as a client does that hears no answer: ask again under the same id."""
    body = {"id": run_id, "handler": "echo", "input": {"text": text, "rate": 20, "chunk": 20}}
    while True:
        try:
            answer = await client.post(f"{base}/v1/runs", json=body, headers={"prefer": "respond-async"})
        except httpx.TransportError:
            pass
        else:
            if answer.status_code == 202:
                return
            assert answer.status_code in BUSY, answer.text
        await asyncio.sleep(PAUSE)


async def test_every_accepted_run_comes_to_a_true_ending(
    broker: Any, services: Services, client: httpx.AsyncClient, stack: AsyncExitStack
) -> None:
    gateways, workers = [services.gateway() for _ in range(2)], [services.worker() for _ in range(2)]
    await services.start(*gateways, *workers)
    services.supervise(*gateways, *workers)
    reading = await stack.enter_async_context(Reading())
    texts = {f"run-{number}": sample_text(number, 400) for number in range(RUNS)}
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, run_id: str) -> None:
        async with room:
            base = gateways[number % 2].url
            await submit(client, base, run_id, texts[run_id])
            reader = HttpReader(client, base, run_id, sse=number % 3 == 0)
            reading.add(reader)
            await reading.until(lambda: reader.ending is not None, f"{run_id} has an ending")

    chance, killed = random.Random(SEED), 0
    async with asyncio.TaskGroup() as runs:
        for number, run_id in enumerate(texts):
            runs.create_task(one(number, run_id))
        for victim in chance.choices([broker, *gateways, *workers], k=KILLS):
            over = sum(reader.ending is not None for reader in reading.readers)
            await reading.until(
                lambda over=over: sum(one.ending is not None for one in reading.readers) > over + RUNS // (3 * KILLS),
                "runs go on to end",
            )
            victim.kill()
            if victim is broker:
                await asyncio.to_thread(broker.start)
            killed += sum(reader.ending is None for reader in reading.readers) > 0
    assert killed == KILLS, "each kill met live runs"

    for reader in reading.readers:
        expected = texts[reader.run_id].encode()
        if reader.ending == "done":
            assert reader.data == expected, reader.run_id
        else:
            assert reader.ending == "producer-lost", reader.run_id
            assert expected.startswith(reader.data), reader.run_id
    endings = Counter(reader.ending for reader in reading.readers)
    assert endings.total() == RUNS
    assert endings["done"] > RUNS / 2, endings
