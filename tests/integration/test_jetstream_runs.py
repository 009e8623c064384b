"""The run queue on JetStream, with a worker's consumer as FastStream would use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from tailrace.contracts import Command
from tailrace.errors import BrokerFailed, BrokerUnsuitable, CorruptRecord, RunTooLarge, UnsupportedRecord
from tailrace.jetstream import JetStream, JetStreamOptions, decode_command, encode_command, open_jetstream
from tailrace.testing.servers import NatsServer

OPTIONS = JetStreamOptions(shards=1, ack_wait=30.0)
COMMAND = Command("a..b", "Chat with: ümlauts.*>", b'{"x":1}', "data-stream", "d1", 60.5, "continue")


@pytest.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[JetStream]:
    broker = await open_jetstream(nats_server.url, options=OPTIONS)
    yield broker
    await broker.close()


@asynccontextmanager
async def worker(
    server: NatsServer, broker: JetStream, handler: str
) -> AsyncIterator[JetStreamContext.PullSubscription]:
    config = await broker.runs.ensure_consumer(handler)
    client: Client = await nats.connect(server.url)
    try:
        yield await client.jetstream().pull_subscribe(
            broker.runs.subject(handler), durable=config.durable_name, stream=broker.runs.stream
        )
    finally:
        await client.close()


async def test_what_no_message_holds_is_refused_before_the_server_hangs_up(broker: JetStream) -> None:
    broken: list[None] = []
    await broker.connection.follow("watched", lambda *_: None, lambda: broken.append(None))
    most = broker.connection.max_payload
    with pytest.raises(RunTooLarge, match="the broker's messages take"):
        await broker.runs.submit(replace(COMMAND, input=b"x" * most))
    with pytest.raises(BrokerFailed, match="headers included"):
        await broker.beats.send("m", b"x" * (most + 1))
    with pytest.raises(BrokerFailed):
        broker.connection.publish("watched", b"x" * (most + 1))
    largest = await broker.runs.submit(replace(COMMAND, input=b"x" * (most - 17 * 1024)))
    await broker.runs.bury(largest, "\U0001f4a5" * 2000)
    await broker.connection.round_trip()
    assert broker.connection.connected.is_set()
    assert not broken


async def test_a_command_is_queued_once_until_it_is_acknowledged(nats_server: NatsServer, broker: JetStream) -> None:
    assert await broker.runs.find("a..b") is None
    accepted = await broker.runs.submit(COMMAND)
    assert accepted.id
    assert await broker.runs.submit(COMMAND) == accepted
    assert await broker.runs.find("a..b") == accepted
    async with worker(nats_server, broker, COMMAND.handler) as taken:
        (message,) = await taken.fetch(1, timeout=30)
        assert decode_command(message.headers, message.data) == accepted
        assert await broker.runs.find("a..b") == accepted
        await message.ack_sync(timeout=30)
        assert await broker.runs.find("a..b") is None
        again = await broker.runs.submit(COMMAND)
        assert again.id != accepted.id
        (message,) = await taken.fetch(1, timeout=30)
        assert decode_command(message.headers, message.data) == again


async def test_many_submits_at_once_accept_one(nats_server: NatsServer, broker: JetStream) -> None:
    accepted = await asyncio.gather(*(broker.runs.submit(COMMAND) for _ in range(20)))
    assert len({command.id for command in accepted}) == 1


async def test_handlers_do_not_meet(nats_server: NatsServer, broker: JetStream) -> None:
    for handler in ("chat", "Chat", "chat.*"):
        await broker.runs.submit(Command("s-" + str(len(handler)) + handler[0], handler, b"1", "bytes", "d"))
    for handler in ("chat", "Chat", "chat.*"):
        async with worker(nats_server, broker, handler) as taken:
            (message,) = await taken.fetch(1, timeout=30)
            assert decode_command(message.headers, message.data).handler == handler
            await message.ack_sync(timeout=30)


async def test_a_lost_answer_is_no_second_command(nats_server: NatsServer) -> None:
    broker = await open_jetstream(nats_server.url, options=JetStreamOptions(shards=1, request_timeout=1.0))
    nats_server.pause()
    before = broker.connection._number
    submit = asyncio.create_task(broker.runs.submit(COMMAND))
    while broker.connection._number < before + 2:  # one answer is missed, and the command sent again
        await asyncio.sleep(0.01)
    nats_server.resume()
    accepted = await submit
    assert await broker.runs.find("a..b") == accepted
    state = (await broker.connection.api(f"STREAM.INFO.{broker.runs.stream}"))["state"]
    assert state["messages"] == 1
    await broker.close()


async def test_the_consumer_is_made_as_promised_and_only_once(broker: JetStream) -> None:
    for _ in range(2):
        config = await broker.runs.ensure_consumer("chat")
    answer = await broker.connection.api(f"CONSUMER.INFO.{broker.runs.stream}.{config.durable_name}")
    found = answer["config"]
    assert found["ack_wait"] == 30 * 10**9
    assert (found["ack_policy"], found["max_ack_pending"], found["max_deliver"]) == ("explicit", 100_000, -1)
    clash = {"durable_name": "other", "ack_policy": "explicit", "filter_subject": "tailrace.r.blog.*"}
    await broker.connection.api(
        f"CONSUMER.CREATE.{broker.runs.stream}.other.tailrace.r.blog.*",
        {"stream_name": broker.runs.stream, "config": clash},
    )
    with pytest.raises(BrokerUnsuitable, match="blog"):
        await broker.runs.ensure_consumer("blog")


async def test_cancel_reaches_the_member(nats_server: NatsServer, broker: JetStream) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    await broker.connection.follow(broker.runs.cancel_subject("m1"), lambda _, __, payload: heard.put_nowait(payload))
    await broker.runs.cancel("m2", "other")
    await broker.runs.cancel("m1", "a..b")
    assert await heard.get() == b"a..b"


async def test_a_dead_letter_keeps_the_command_and_the_reason(broker: JetStream) -> None:
    accepted = await broker.runs.submit(COMMAND)
    await broker.runs.bury(accepted, "it broke\nthrice ü")
    answer = await broker.connection.api("STREAM.MSG.GET.TAILRACE_DEAD", {"seq": 1})
    assert answer["message"]["subject"] == broker.names.dead_letter(COMMAND.handler, "a..b")


def test_commands_are_read_as_written() -> None:
    headers, data = encode_command(COMMAND)
    assert decode_command(headers, data) == COMMAND
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    with pytest.raises(UnsupportedRecord):
        decode_command(headers | {"Tailrace-Command": "2"}, data)
    for broken in (None, {}, headers | {"Tailrace-Meta": "{"}, headers | {"Tailrace-Command": "x"}):
        with pytest.raises(CorruptRecord):
            decode_command(broken, data)
