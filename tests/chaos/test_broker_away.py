"""The broker goes away for three lease times and comes back: no live answer is ended, and none has another byte."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from tailrace.testing.clients import HttpReader, Reading, sample_text, start_run, status_of
from tailrace.testing.processes import Services

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]

STREAMS, CHUNK, RATE, CHUNKS = 12, 24, 10, 320
LEASE_TTL = 4


@pytest.mark.parametrize("way", ["killed", "stopped"])
async def test_no_live_answer_is_ended(
    broker: Any, services: Services, client: httpx.AsyncClient, way: str, stack: AsyncExitStack
) -> None:
    gateways = [services.gateway(LEASE_TTL=LEASE_TTL, REQUEST_TIMEOUT=1) for _ in range(2)]
    worker = services.worker(LEASE_TTL=LEASE_TTL)
    await services.start(*gateways, worker)
    texts = {f"answer-{number}": sample_text(number, CHUNK * CHUNKS) for number in range(STREAMS)}
    for run_id, text in texts.items():
        await start_run(client, gateways[0].url, run_id, {"text": text, "rate": RATE, "chunk": CHUNK})
    readers = [
        HttpReader(client, gateway.url, run_id, sse=sse)
        for run_id in texts
        for gateway in gateways
        for sse in (False, True)
    ]
    reading = await stack.enter_async_context(Reading(*readers))
    await reading.begun()

    if way == "killed":
        broker.kill()
    else:
        broker.pause()
    refused = await client.post(f"{gateways[0].url}/v1/runs", json={"handler": "echo", "input": {"text": "new"}})
    await asyncio.sleep(3 * LEASE_TTL)  # the absence itself
    assert not reading.any_over
    at = {reader: len(reader.data) for reader in readers}
    if way == "killed":
        await asyncio.to_thread(broker.start)
    else:
        broker.resume()

    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "broker-unavailable"
    assert int(refused.headers["retry-after"]) >= 1
    await reading.until(lambda: all(len(reader.data) > size for reader, size in at.items()), "every reader has gone on")
    states = [(await status_of(client, gateways[0].url, run_id))["status"] for run_id in texts]
    assert set(states) <= {"streaming", "done"}
    await reading.over()
    for reader in readers:
        assert reader.ending == "done"
        assert reader.data == texts[reader.run_id].encode()
        assert reader.reconnects == 0, "a live reader waits, it is not sent away"
