"""An idle reader costs the broker nothing: with 200 of them, it hears heartbeats and nothing else."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import nats
from nats.aio.msg import Msg

from tailrace.connect import StoreOptions, connect
from tailrace.testing.clients import HttpReader, Reading, begin_quiet, end_quiet, new_client
from tailrace.testing.processes import Services, until
from tailrace.testing.servers import NatsServer

READERS, STREAMS, BEATS, LEASE_TTL = 200, 40, 5, 5


class Heard:
    """Every message that the broker takes from a client or sends on, by its first two tokens."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.beats: Counter[str] = Counter()

    async def take(self, message: Msg) -> None:
        tokens = message.subject.split(".")
        self.counts[".".join(tokens[:2])] += 1
        if tokens[:2] == ["tailrace", "m"]:
            self.beats[tokens[2]] += 1

    def beaten(self, times: int) -> Callable[[], bool]:
        """Whether both members have beaten that often."""
        return lambda: len(self.beats) == 2 and min(self.beats.values()) >= times


async def messages_in(client: httpx.AsyncClient, server: NatsServer) -> int:
    """The broker's own count of what clients sent it."""
    ports = json.loads((server.directory / f"nats-server_{server.pid}.ports").read_text())
    return int((await client.get(f"{ports['monitoring'][0]}/varz")).json()["in_msgs"])


async def test_idle_readers_cost_nothing_but_heartbeats(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats", config='http: "127.0.0.1:-1"') as server:
        options = StoreOptions(lease_ttl=LEASE_TTL)
        async with (
            Services(tmp_path / "services", server.url, os.environ, LEASE_TTL=LEASE_TTL) as services,
            new_client() as client,
            await connect(server.url, options) as store,
            AsyncExitStack() as stack,
        ):
            gateway = services.gateway()
            await services.start(gateway)
            ids = [f"quiet-{number}" for number in range(STREAMS)]
            await begin_quiet(store, ids)
            readers = [
                HttpReader(client, gateway.url, ids[number % STREAMS], sse=number % 2 == 0) for number in range(READERS)
            ]
            reading = await stack.enter_async_context(Reading(*readers))
            await reading.begun()

            ear = await nats.connect(server.url)
            heard = Heard()
            await ear.subscribe(">", cb=heard.take)
            await until(heard.beaten(2), "what opening and writing caused is over")  # beats name what went quiet
            before = await messages_in(client, server)
            heard.counts.clear()
            heard.beats.clear()
            await until(heard.beaten(BEATS), "both members went on beating")
            counts, beats = dict(heard.counts), sum(heard.beats.values())
            after = await messages_in(client, server)
            await ear.close()

            assert {kind for kind in counts if not kind.startswith("_INBOX")} == {"tailrace.m", "tailrace.ml"}
            # each beat may come with a ping or two; one for every reader would be hundreds
            assert after - before <= 3 * (beats + 4)

            await end_quiet(store, ids, reading)
