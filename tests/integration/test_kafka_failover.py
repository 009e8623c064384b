"""Kafka while leaders change, vanish or do not know yet that they lead no more: nothing that counts is taken for lost,
and nothing that may be stored for refused.

What a cluster answers in such a moment nobody can time. So these are the answers of a real broker, altered on their way
to the process that asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest

from tailrace._ports import choose_port
from tailrace.errors import BrokerError, BrokerRefused, BrokerUnavailable
from tailrace.kafka import KafkaOptions
from tailrace.kafka import feeds as feeds_module
from tailrace.kafka.connection import FOLLOW, LOOK_UP, WRITE, Connection, Place, find_again
from tailrace.kafka.log import KafkaLog
from tailrace.kafka.refusals import Unanswered
from tailrace.kafka.sender import Ack
from tailrace.log import AppendUnknown
from tailrace.model import Status
from tailrace.records import Stored
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.kafka_world import KafkaWorld, opened, own_topics
from tailrace.testing.lives import Life
from tailrace.testing.worlds import replay

pytestmark = pytest.mark.slow

PATIENCE = 60.0
OUT_OF_RANGE, NOT_LEADER, TOO_FEW_IN_SYNC, DENIED = 1, 6, 19, 29
Ask = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(Path(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


@pytest.fixture
def options(request: pytest.FixtureRequest) -> KafkaOptions:
    return own_topics(request.node.name)


def altered(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, alter: Callable[[Ask, int, Any, int], Awaitable[Any]]
) -> None:
    """Let ``alter`` answer the requests of a process; it is given how to ask, the node, the request and the lane."""
    ask = connection.request

    async def request(node: int, request: Any, lane: int, timeout: float | None = None) -> Any:
        async def really(node: int, request: Any, lane: int) -> Any:
            return await ask(node, request, lane, timeout)

        return await alter(really, node, request, lane)

    monkeypatch.setattr(connection, "request", request)


def places_of(answer: Any) -> list[Place]:
    """The partitions that an answer names."""
    return [Place(topic, each[0]) for topic, partitions in answer.topics for each in partitions]


def with_code(answer: Any, place: Place, code: int) -> Any:
    """The answer, with this error for one partition."""
    answer.topics = [
        (topic, [(each[0], code, *each[2:]) if Place(topic, each[0]) == place else each for each in partitions])
        for topic, partitions in answer.topics
    ]
    return answer


# --- appends


@pytest.mark.parametrize("codes", [(NOT_LEADER, TOO_FEW_IN_SYNC), (-1,), (2,)], ids=str)
async def test_a_claim_that_is_stored_although_its_append_failed_has_an_owner_who_knows(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch, codes: tuple[int, ...]
) -> None:
    """A leader that ceases to lead says so to whom it kept waiting, whether or not the replicas have the record."""
    world = KafkaWorld(server.url, lease_ttl=30, options=options)
    store = await world.store()
    assert isinstance(store.log, KafkaLog)
    place, told, go_on = store.log._names.records("s"), list(codes), asyncio.Event()
    answers: list[Any] = []

    async def alter(ask: Ask, node: int, request: Any, lane: int) -> Any:
        if lane >= FOLLOW:  # else the record's own coming back would say that it is stored
            answer = await ask(node, request, lane)
            await go_on.wait()
            return answer
        if isinstance(request, ProduceRequest) and request._topics[0][0] == place.topic and told:
            answers.append(answers[0] if answers else await ask(node, request, lane))
            return with_code(answers[-1], place, told.pop(0))
        if lane == LOOK_UP and not told:
            go_on.set()
        return await ask(node, request, lane)

    altered(store.log._connection, monkeypatch, alter)
    try:
        async with asyncio.timeout(PATIENCE):
            await store.acquire("s")
            assert (await store.status("s")).status is Status.STREAMING
            await store.append("s", b"and its owner writes")
    finally:
        go_on.set()
        await world.close()
    assert not told


async def test_a_message_does_not_wait_for_the_next_one_to_be_sent(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is queued in the moment in which its node has nothing to send any more, or gets another leader while its node
    answers. Two nodes are one here, by two numbers."""
    async with opened(server.url, replace(options, partitions=2)) as broker, asyncio.timeout(PATIENCE):
        here, there = broker.names.all_records
        leaders: dict[Place, int | None] = {here: server.id, there: server.id + 1}
        answered, go_on, sent = asyncio.Event(), asyncio.Event(), list[asyncio.Future[Ack]]()

        def send(place: Place) -> None:
            sent.append(broker.sender.send(place, b"nobody", b"", []))

        async def alter(ask: Ask, node: int, request: Any, lane: int) -> Any:
            answer = await ask(server.id, request, lane)
            if lane == WRITE and not go_on.is_set():
                answered.set()
                await go_on.wait()
                if len(sent) == 1:
                    send(there)
            return answer

        altered(broker.connection, monkeypatch, alter)
        monkeypatch.setattr(broker.connection, "leader", lambda place: leaders.get(place, server.id))
        send(here)
        await answered.wait()
        go_on.set()
        asyncio.get_running_loop().call_soon(send, here)  # as soon as the node has nothing to send
        await sent[0]
        await asyncio.sleep(0)
        assert len(await asyncio.gather(*sent)) == 3

        for event in (answered, go_on):
            event.clear()
        send(here)
        await answered.wait()
        leaders[there] = server.id
        send(there)
        await asyncio.sleep(0)
        leaders[there] = server.id + 1
        go_on.set()
        assert len(await asyncio.gather(*sent)) == 5


async def test_an_answer_that_is_not_understood_leaves_nobody_waiting(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(server.url, options) as broker, asyncio.timeout(PATIENCE):
        place, answers = broker.names.all_records[0], ["of a stranger's topic", "of nothing"]

        async def alter(ask: Ask, node: int, request: Any, lane: int) -> Any:
            answer = await ask(node, request, lane)
            if lane == WRITE and answers:
                answer.topics = [] if answers.pop() == "of nothing" else [("strange", answer.topics[0][1])]
            return answer

        altered(broker.connection, monkeypatch, alter)
        for _ in tuple(answers):
            with pytest.raises(Unanswered):
                await broker.sender.send(place, b"nobody", b"", [])
        assert (await broker.sender.send(place, b"nobody", b"", [])).offset == 2
        assert "not understood" in caplog.text


# --- what is followed


async def test_a_node_that_led_before_is_not_believed_that_records_are_gone(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was cut off, and lacks what the new leader took since. Both are one node here, by two numbers."""
    async with opened(server.url, options) as broker, opened(server.url, options) as reader, asyncio.timeout(PATIENCE):
        life, place, now = await Life(broker).begin(b"before "), broker.names.all_records[0], server.id + 1
        track = broker.log._tracks.peek("s")
        assert track is not None
        beginning, leader, denied = track.beginning, broker.connection.leader, asyncio.Event()

        async def alter(ask: Ask, node: int, request: Any, lane: int) -> Any:
            answer = await ask(server.id, request, lane)
            if node == server.id and lane >= FOLLOW and place in places_of(answer):
                denied.set()
                return with_code(answer, place, OUT_OF_RANGE)
            return answer

        altered(broker.connection, monkeypatch, alter)
        monkeypatch.setattr(broker.connection, "leader", lambda one: now if one == place else leader(one))
        while not denied.is_set():  # the question that it has may have been asked before
            await life.word(b"after ")
        for _ in range(5):
            await life.word(b"denied")
        await Life(reader, "theirs").begin(b"others' too")
        assert replay(await broker.log.read("theirs"))[1] == [b"others' too"]
        assert replay(await reader.log.read("s"))[1][-6:] == [b"after "] + [b"denied"] * 5
        assert track.beginning == beginning
        assert "lost records" not in caplog.text


@pytest.mark.parametrize(("code", "error"), [(NOT_LEADER, BrokerUnavailable), (DENIED, BrokerRefused)], ids=str)
async def test_the_end_of_a_partition_is_told_whatever_becomes_of_another_of_its_node(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch, code: int, error: type[BrokerError]
) -> None:
    options = replace(options, partitions=2, request_timeout=2.0)
    async with opened(server.url, options) as broker, asyncio.timeout(PATIENCE):
        bad, good = broker.names.all_records

        async def alter(ask: Ask, node: int, request: Any, lane: int) -> Any:
            answer = await ask(node, request, lane)
            return with_code(answer, bad, code) if lane == LOOK_UP else answer

        altered(broker.connection, monkeypatch, alter)
        refused, end = await asyncio.gather(*(map(broker.connection.end, (bad, good))), return_exceptions=True)
        assert isinstance(refused, error)
        assert end == 0


async def test_a_partition_that_nobody_leads_holds_no_other_up(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is asked for its leader may not answer for a while."""
    async with opened(server.url, replace(options, partitions=2)) as broker, asyncio.timeout(PATIENCE):
        orphan, other = broker.names.all_records
        for place in (orphan, other):
            await broker.sender.send(place, b"nobody", b"", [])
        leader, relearn = broker.connection.leader, broker.connection.relearn
        asked, answered = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            asked.set()
            await answered.wait()
            await relearn()

        monkeypatch.setattr(broker.connection, "relearn", slow)
        monkeypatch.setattr(
            broker.connection, "leader", lambda one: leader(one) if one != orphan or answered.is_set() else None
        )
        found = [await broker.feeds.follow(orphan, lambda batch: None, lambda first, end: end, 0)]
        await asked.wait()
        found.append(await broker.feeds.follow(other, lambda batch: None, lambda first, end: end, 0))
        await found[1].passed(1)
        assert found[0].position == 0
        answered.set()
        await found[0].passed(1)


async def test_after_an_append_without_an_answer_a_lane_does_not_ask_without_a_pause_for_ever(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is nothing in a partition by which to see that its node is as it was."""
    async with opened(server.url, replace(options, partitions=2)) as broker, asyncio.timeout(PATIENCE):
        failing, at_once, lost, waits = False, 0, asyncio.Event(), asyncio.Event()

        async def alter(ask: Ask, node: int, request: Any, lane: int) -> Any:
            nonlocal at_once
            if lane >= FOLLOW and lost.is_set() and not waits.is_set():
                at_once += 1
                if request._values[1] > 0:  # for as long the broker may keep it
                    waits.set()
            answer = await ask(node, request, lane)
            if failing and not lost.is_set():
                if lane == WRITE:
                    lost.set()
                    raise Unanswered("as if it were")
                if lane >= FOLLOW:  # else the record's own coming back may say first that it is stored
                    await lost.wait()
            return answer

        altered(broker.connection, monkeypatch, alter)
        life = await Life(broker).begin(b"a")
        (empty,) = {*broker.names.all_records} - {broker.names.records("s")}
        feed = await broker.feeds.follow(empty, lambda batch: None, lambda first, end: end, 0)
        while len(broker.feeds._lanes) != 1:  # one has taken over what the others have
            await asyncio.sleep(0.01)
        failing = True
        with pytest.raises(AppendUnknown):
            await life.word(b"b")
        await waits.wait()
        assert at_once < 20
        assert not feed.in_doubt
        assert [stored.record.chunks for stored in await broker.log.read("s")][1:] == [(b"a",), (b"b",)]
        assert not any(each.in_doubt for each in broker.feeds._feeds.values())


async def test_who_looks_for_a_cluster_and_gives_up_leaves_no_connection_open(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up while the node answers: in the moment in which a process closes, or has waited long enough."""
    send, asked, answered = AIOKafkaConnection.send, list[AIOKafkaConnection](), asyncio.Event()

    async def slow(connection: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
        answer = await send(connection, request, expect_response)
        if isinstance(request, MetadataRequest) and connection not in client._conns.values():
            asked.append(connection)
            await answered.wait()
        return answer

    async with opened(server.url, options) as broker, asyncio.timeout(PATIENCE):
        client = broker.connection._client
        monkeypatch.setattr(AIOKafkaConnection, "send", slow)
        looking = asyncio.create_task(find_again(client, broker.connection.address))
        while not asked:
            await asyncio.sleep(0.01)
        looking.cancel()
        asyncio.get_running_loop().call_later(0.05, answered.set)
        await asyncio.wait({looking})
        assert looking.cancelled()
        assert not any(connection.connected() for connection in asked)


@pytest.mark.parametrize("how", ["of a session that it forgot", "with a fault", "but for the partition"])
async def test_an_answer_without_what_it_should_have_damages_nothing(
    server: KafkaServer,
    options: KafkaOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """It has room for eight megabytes, the user may have a quota, and the broker forgets sessions."""
    async with opened(server.url, options) as writer, opened(server.url, options) as broker, asyncio.timeout(PATIENCE):
        place, heard, altering = broker.names.all_records[0], list[int](), True
        for _ in range(3):  # one answer has one of them
            await writer.sender.send(place, b"nobody", bytes(700_000), [])

        async def alter(ask: Ask, node: int, request: Any, lane: int) -> Any:
            nonlocal altering
            answer = await ask(node, request, lane)
            if lane >= FOLLOW and heard and altering:
                altering = False
                if how == "but for the partition":
                    answer.topics = [(topic, each) for topic, each in answer.topics if topic != place.topic]
                else:
                    answer.error_code = -1 if how == "with a fault" else 70
            return answer

        async def suspected(*_: Any) -> int:
            raise AssertionError("a sound batch counts as damaged")

        altered(broker.connection, monkeypatch, alter)
        monkeypatch.setattr(feeds_module, "served_from", suspected)
        feed = await broker.feeds.follow(place, lambda batch: heard.append(batch.next_offset), lambda _, end: end, 0)
        await feed.passed(3)
        assert heard == [1, 2, 3]
        assert not altering
        assert ("does not answer" in caplog.text) == (how == "with a fault")
        assert "not mended" not in caplog.text


@pytest.mark.parametrize("what", ["is on no lane", "was lost"])
async def test_a_lane_rests_although_somebody_waits_for_what(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its node would be asked without a pause until a partition is back, or has grown again."""
    async with opened(server.url, replace(options, partitions=2)) as broker, asyncio.timeout(PATIENCE):
        await Life(broker).begin(b"a")
        place, leader, wake = broker.names.records("s"), broker.connection.leader, feeds_module._wake
        (other,) = {*broker.names.all_records} - {place}
        rested, denying = asyncio.Event(), asyncio.Event()

        async def alter(ask: Ask, node: int, request: Any, lane: int) -> Any:
            answer = await ask(node, request, lane)
            if denying.is_set() and lane >= FOLLOW and place in places_of(answer):
                denying.clear()
                return with_code(answer, place, OUT_OF_RANGE)
            return answer

        def woken(rest: asyncio.Future[None]) -> None:
            rested.set()
            wake(rest)

        monkeypatch.setattr(feeds_module, "_wake", woken)
        if what == "was lost":
            altered(broker.connection, monkeypatch, alter)
            feed = broker.feeds._feeds[place]
            denying.set()
        else:
            monkeypatch.setattr(broker.connection, "leader", lambda one: leader(one) if one != other else None)
            feed = await broker.feeds.follow(other, lambda batch: None, lambda first, end: end, 0)
        waiting = asyncio.create_task(feed.passed(1_000_000))
        while denying.is_set():
            await broker.sender.send(place, b"nobody", b"", [])
        await asyncio.sleep(0)
        rested.clear()
        while not rested.is_set():
            await broker.sender.send(place, b"nobody", b"", [])
        assert not waiting.done()
        waiting.cancel()


async def test_what_is_confirmed_behind_a_loss_that_no_lane_met_does_not_count(
    tmp_path: Path, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A power cut took a broker's unsynced end, and others filled it just so far that the next record is confirmed
    where the process expects it."""
    with KafkaServer(tmp_path / "kafka") as server:
        async with opened(server.url, options) as broker, asyncio.timeout(PATIENCE):
            life, place = await Life(broker).begin(*(b"%d;" % n for n in range(20))), broker.names.all_records[0]
            asks, writes, confirmed, go_on = (asyncio.Event() for _ in range(4))
            holding, written = False, 20

            async def alter(ask: Ask, node: int, request: Any, lane: int) -> Any:
                if holding and any(each.number == lane and place in each.feeds for each in broker.feeds._lanes):
                    asks.set()
                    await go_on.wait()
                if lane == WRITE:
                    writes.set()
                answer = await ask(node, request, lane)
                if lane == WRITE:
                    confirmed.set()
                return answer

            altered(broker.connection, monkeypatch, alter)
            holding = True
            while not asks.is_set():  # the question that it has is answered, and the next one waits
                await life.word(b"seen;")
                written += 1
            seen = life.state.position
            server.pause()
            writes.clear()
            lost = asyncio.create_task(life.word(b"never stored"))
            await writes.wait()
            server.kill()
            with pytest.raises(AppendUnknown):
                await lost
            await lose_its_end(server, options, place, seen)
            server.start()
            confirmed.clear()
            appending = asyncio.create_task(persist(lambda: life.word(b"more")))
            await confirmed.wait()
            go_on.set()
            with pytest.raises(AppendUnknown):
                await appending
            assert "lost records" in caplog.text
            async with opened(server.url, options) as fresh:
                left = replay(await fresh.log.read("s"))[1]
                assert 0 < len(left) < written
                assert replay(await broker.log.read("s"))[1] == left


async def lose_its_end(server: KafkaServer, options: KafkaOptions, place: Place, up_to: int) -> None:
    """Cut a partition of a broker that is down, and let a stranger, whom alone it is reachable for, fill it again."""
    segment = next(server.directory.rglob(f"{place}/*.log"))
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size * 2 // 3)
    for name in ("*.index", "*.timeindex", "*.snapshot"):
        for path in segment.parent.glob(name):
            path.unlink()
    port, server.port = server.port, choose_port(None, None)
    server.start()
    async with opened(server.url, options) as stranger:
        for _ in range(up_to - await stranger.connection.end(place)):
            await stranger.sender.send(place, b"another", b"of a stranger", [])
        assert await stranger.connection.end(place) == up_to
    server.kill()
    server.port = port


async def persist(call: Callable[[], Awaitable[Stored]]) -> Stored:
    """As long as nothing was sent."""
    while True:
        try:
            return await call()
        except BrokerUnavailable:
            await asyncio.sleep(0.05)
