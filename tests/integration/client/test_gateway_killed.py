"""Gateways and workers as processes on a real broker: SIGKILL in the middle, and every byte all the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tailrace.client import Patience
from tailrace.testing.clients import sample_text
from tailrace.testing.processes import Services
from tailrace.testing.servers import NatsServer

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(300)]
PATIENT = Patience(start=60, resume=120, first_pause=0.01, longest_pause=0.5)


async def test_a_killed_gateway_costs_no_byte(speech: Any, nats_server: NatsServer, tmp_path: Path) -> None:
    text = sample_text(1, 12_000)
    data = text.encode()
    killed_at: list[int] = []
    async with Services(tmp_path / "services", nats_server.url, os.environ) as services:
        first, second, worker = services.gateway(), services.gateway(), services.worker()
        await services.start(first, second, worker)
        gateways = [first, second]
        async with speech.client(lambda: gateways[0].url, patience=PATIENT) as client:
            request = {"text": text, "chunk": 20, "rate": 40}
            answer = await speech.call(client.run, "echo", request, id="r")
            got = b""
            async for part in speech.each(answer.bytes()):
                got += part
                if len(got) > len(data) * (len(killed_at) + 1) / 4 and len(killed_at) < 2:
                    gateways[0].kill()
                    killed_at.append(len(got))
                    if len(killed_at) == 1:
                        gateways.reverse()  # the next attempt goes to the other one
                    else:
                        services.supervise(gateways[0])  # it comes back at the same port
            assert got == data
            assert len(killed_at) == 2
            assert answer.reconnects >= 2
            again = client.resume("r", offset=killed_at[0], incarnation=answer.position.incarnation)
            assert await speech.call(again.read) == data[killed_at[0] :]
            assert await speech.call(client.resume("r").text) == text
