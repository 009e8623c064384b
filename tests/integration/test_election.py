"""Real processes on one nats-server, three of them, a Kafka broker or Redis: elections among them, and what becomes of
a producer that is killed or paused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tailrace.connect import StoreOptions, connect
from tailrace.errors import ProducerLost
from tailrace.jetstream import JetStreamOptions
from tailrace.kafka import KafkaOptions
from tailrace.model import Status
from tailrace.testing.cluster import NatsCluster
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.kafka_world import KafkaWorld
from tailrace.testing.kit import until_ending
from tailrace.testing.redis_server import RedisServer
from tailrace.testing.redis_world import RedisWorld
from tailrace.testing.servers import NatsServer
from tailrace.testing.worlds import JetStreamWorld, replay

Server = NatsServer | NatsCluster | KafkaServer | RedisServer
SomeWorld = JetStreamWorld | KafkaWorld | RedisWorld
PATIENCE = 60.0
PROCESSES, IDS = 4, 200
LEASE_TTL = 1.5

AGENT = """
import asyncio, json, sys
from tailrace.connect import StoreOptions, connect
from tailrace.errors import TailraceError
from tailrace.jetstream import JetStreamOptions
from tailrace.kafka import KafkaOptions

def say(**what):
    print(json.dumps(what), flush=True)

async def line(reader):
    return json.loads(await reader.readline())

async def main():
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)  # an order is one line
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    options = StoreOptions(
        lease_ttl=float(sys.argv[2]),
        jetstream=JetStreamOptions(shards=4),
        kafka=KafkaOptions(partitions=4, claims_partitions=2),
    )
    store = await connect(sys.argv[1], options)
    say(member=store.members.id)
    while True:
        order = await line(reader)
        match order["do"]:
            case "elect":
                ids, roles = order["ids"], {}
                for first in range(0, len(ids), 5):  # few at once: all of one process's fit into one write
                    some = ids[first : first + 5]
                    for id, each in zip(some, await asyncio.gather(*map(store.acquire, some))):
                        roles[id] = [str(each.role), str(each.incarnation)]
                say(roles=roles)
            case "produce":
                await store.acquire(order["id"])
                say(ready=True)
                asyncio.create_task(produce(store, order["id"], order["pause"]))
            case "end":
                await store.aclose()
                return

async def produce(store, stream_id, pause):
    for number in range(1_000_000):
        try:
            await store.append(stream_id, b"%d\\n" % number)
        except TailraceError as error:
            say(failed=type(error).__name__, number=number)
            return
        say(acked=number)
        await asyncio.sleep(pause)

asyncio.run(main())
"""


class Agent:
    """A process with a store of its own that does what it is told, one JSON line an order and one an answer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.member = ""

    async def tell(self, **order: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        await self.process.stdin.drain()

    async def hear(self, what: str) -> Any:
        """The next answer's ``what``; other answers before it are skipped."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            answer = json.loads(line)
            if what in answer:
                return answer[what]
        raise AssertionError(f"the process ended before it said {what}")

    def signal(self, how: signal.Signals) -> None:
        os.kill(self.process.pid, how)

    async def pause_at_work(self, stream_id: str) -> None:
        """Have it produce, and stop it in the middle of that."""
        await self.tell(do="produce", id=stream_id, pause=0.0)
        await self.hear("ready")
        while await self.hear("acked") < 50:
            pass
        self.signal(signal.SIGSTOP)


@asynccontextmanager
async def agents(url: str, count: int) -> AsyncIterator[list[Agent]]:
    started: list[Agent] = []
    try:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", AGENT, url, str(LEASE_TTL)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 24,  # an answer is one line
            )
            started.append(Agent(process))
        for agent in started:
            agent.member = await agent.hear("member")
        yield started
    finally:
        for agent in started:
            if agent.process.returncode is None:
                agent.signal(signal.SIGKILL)
            await agent.process.communicate()


CLUSTER = pytest.param(NatsCluster, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[NatsServer, KafkaServer, RedisServer, CLUSTER])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with request.param(Path(tmp_path_factory.mktemp("broker"))) as server:
        yield server


def world_on(server: Server) -> SomeWorld:
    if isinstance(server, RedisServer):
        return RedisWorld(server.url)
    return KafkaWorld(server.url) if isinstance(server, KafkaServer) else JetStreamWorld(server.url)


Roles = dict[str, list[str]]  # role and incarnation by id


async def elected(among: list[Agent], ids: list[str]) -> list[Roles]:
    """What each agent is told when all of them acquire every id at once."""
    for number, agent in enumerate(among):  # in orders of their own, else the first one stays ahead
        await agent.tell(do="elect", ids=Random(number).sample(ids, len(ids)))
    return [await agent.hear("roles") for agent in among]


async def test_one_producer_each_and_all_agree(server: Server) -> None:
    ids = [f"election:{number}" for number in range(IDS)]
    async with asyncio.timeout(PATIENCE), agents(server.url, PROCESSES) as all_agents:
        found = await elected(all_agents, ids)
        won = Counter[int]()
        async with closing(world_on(server)) as world:
            for stream_id in ids:
                roles = [roles[stream_id] for roles in found]
                assert sorted(role for role, _ in roles) == ["consumer"] * (PROCESSES - 1) + ["producer"]
                assert len({incarnation for _, incarnation in roles}) == 1
                state, _ = replay(await world.records(stream_id))
                assert str(state.incarnation) == roles[0][1]
                won[[role for role, _ in roles].index("producer")] += 1
        assert len(won) > 1, f"{won}: they were not at it at once"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("server", [KafkaServer], indirect=True)
async def test_a_fresh_process_knows_every_owner_of_ten_thousand_contentions(server: Server) -> None:
    """All that it goes by is the log of claims, with the openings of the losers among them."""
    ids = [f"fresh:{number}" for number in range(10_000 // PROCESSES)]
    async with asyncio.timeout(5 * PATIENCE), agents(server.url, PROCESSES) as all_agents:
        found = await elected(all_agents, ids)
        owners = {}
        for stream_id in ids:
            roles = [roles[stream_id] for roles in found]
            assert sorted(role for role, _ in roles) == ["consumer"] * (PROCESSES - 1) + ["producer"]
            [owners[stream_id]] = {incarnation for _, incarnation in roles}
        won = Counter(number for number, roles in enumerate(found) for role, _ in roles.values() if role == "producer")
        assert len(won) > 1, f"{won}: they were not at it at once"
        async with agents(server.url, 1) as fresh:
            [roles] = await elected(fresh, ids)
        assert roles == {stream_id: ["consumer", incarnation] for stream_id, incarnation in owners.items()}


@asynccontextmanager
async def closing(world: SomeWorld) -> AsyncIterator[SomeWorld]:
    try:
        yield world
    finally:
        await world.close()


def options() -> StoreOptions:
    kafka = KafkaOptions(partitions=4, claims_partitions=2)
    return StoreOptions(lease_ttl=LEASE_TTL, jetstream=JetStreamOptions(shards=4), kafka=kafka)


@pytest.mark.chaos
async def test_readers_of_a_killed_producer_get_every_acked_byte_and_the_truth(server: Server) -> None:
    stream_id = "killed"
    async with (
        asyncio.timeout(PATIENCE),
        agents(server.url, 1) as (agent,),
        await connect(server.url, options()) as store,
    ):
        await agent.tell(do="produce", id=stream_id, pause=0.001)
        await agent.hear("ready")

        async def read() -> list[int]:
            got, ending = await until_ending(store.read(stream_id))
            assert isinstance(ending, ProducerLost)
            return [int(line) for line in b"".join(got).splitlines()]

        readers = [asyncio.create_task(read()) for _ in range(3)]
        acked = -1
        while acked < 50:
            acked = await agent.hear("acked")
        agent.signal(signal.SIGKILL)
        rest, _ = await agent.process.communicate()
        for line in rest.splitlines():
            acked = json.loads(line)["acked"] if line.startswith(b'{"acked"') and line.endswith(b"}") else acked
        for reading in readers:
            numbers = await reading
            assert numbers == list(range(len(numbers)))
            assert len(numbers) > acked
        info = await store.status(stream_id)
        assert (info.status, info.epoch) == (Status.PRODUCER_LOST, 2)


@pytest.mark.chaos
async def test_nobody_reads_a_late_byte_of_a_zombie(server: Server) -> None:
    """Paused over its lease, its stream ended for it, and then continued in the middle of its work."""
    stream_id = "zombie"
    async with (
        asyncio.timeout(PATIENCE),
        agents(server.url, 1) as (agent,),
        await connect(server.url, options()) as store,
    ):
        await agent.pause_at_work(stream_id)
        got, ending = await until_ending(store.read(stream_id))
        assert isinstance(ending, ProducerLost)
        agent.signal(signal.SIGCONT)
        assert await agent.hear("failed") in ("StreamSuperseded", "StreamFinalized")
        numbers = [int(chunk) for chunk in got]
        assert numbers == list(range(len(numbers)))
        again, ending = await until_ending(store.read(stream_id))
        assert isinstance(ending, ProducerLost)
        assert again == got
        async with closing(world_on(server)) as world:
            state, chunks = replay(await world.records(stream_id))
        assert chunks == got
        assert state.epoch == 2


@pytest.mark.chaos
async def test_a_reader_that_is_there_when_a_zombie_wakes_sees_none_of_it(server: Server) -> None:
    """Paused over its lease, and its stream taken over by another, who writes on before and after it wakes."""
    stream_id = "woken"
    async with (
        asyncio.timeout(PATIENCE),
        agents(server.url, 1) as (agent,),
        await connect(server.url, options()) as store,
        await connect(server.url, options()) as elsewhere,
    ):
        await agent.pause_at_work(stream_id)
        lease = await store.takeover(stream_id, 1)
        assert lease is not None
        reading = [asyncio.create_task(until_ending(each.read(stream_id))) for each in (store, elsewhere)]
        await store.append(stream_id, b"asleep", lease)
        while not elsewhere.members.is_lost(agent.member):
            await asyncio.sleep(0.05)
        agent.signal(signal.SIGCONT)
        assert await agent.hear("failed") == "StreamSuperseded"
        await store.append(stream_id, b"awake", lease)
        await store.finalize(stream_id, "done", lease=lease)
        for got, ending in await asyncio.gather(*reading):
            assert ending is None
            assert got[-2:] == [b"asleep", b"awake"]
            numbers = [int(chunk) for chunk in got[:-2]]
            assert len(numbers) > 50
            assert numbers == list(range(len(numbers)))
