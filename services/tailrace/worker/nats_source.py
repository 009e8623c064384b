"""Feeds a runner from JetStream, through FastStream: one pull subscription a handler, and one for cancels.

Theory. FastStream fetches one command, calls us, and fetches the next when we return. So we return when the run is a
task *and* there is room for another: a full worker has no fetch open and takes nothing. It carries commands and
cancels, never chunks: it costs eight times a raw client.

Rules, each against a trap:

- ``max_workers=1``, batch 1, manual acks: anything else takes commands that nobody executes yet.
- The connection is one of ours (same servers, credentials and TLS as the store's, followed when the broker comes back
  elsewhere): the library's own gives up after 60 attempts, or at the first error that the server names.
- A publish (a fetch, an ack) waits while the broker is away, and fetches that end early are spaced: FastStream restarts
  a failed fetch at once, for ever. Such a fetch also has the consumers made again, should one have been deleted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import structlog
from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.annotations import NatsMessage
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from tailrace.command_wire import ID, REASON
from tailrace.contracts import Command, StreamStore
from tailrace.errors import BrokerError, BrokerUnavailable, InvalidStreamId
from tailrace.jetstream import JetStreamOptions, JetStreamRunQueue, decode_command
from tailrace.jetstream.address import Address
from tailrace.jetstream.client import Client
from tailrace.jetstream.connection import Connection
from tailrace.model import validate_stream_id
from tailrace.worker.handlers import Handler
from tailrace.worker.runner import Runner

log = structlog.get_logger(__name__)

FETCH_TIMEOUT = 5.0  # also how long a fetch that a dying broker forgot keeps its subscription from asking again
FETCH_SPACING = 0.25
_NEXT = "$JS.API.CONSUMER.MSG.NEXT."


class PatientClient(Client):
    """A client whose publishes wait for the connection, and whose fetches that bring nothing are spaced."""

    ready: asyncio.Event

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.barren: Callable[[], object] = lambda: None
        self._asked: dict[str, float] = {}

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, Any] | None = None
    ) -> None:
        await self.ready.wait()
        if subject.startswith(_NEXT):
            now = asyncio.get_running_loop().time()
            if (early := self._asked.get(subject, 0) + FETCH_SPACING - now) > 0:
                self.barren()
                await asyncio.sleep(early)
            self._asked[subject] = now + max(early, 0)
        await super().publish(subject, payload, reply, headers)

    def fetched(self) -> None:
        """A fetch brought something: the next one need not wait."""
        self._asked.clear()


class WorkerConnection(Connection):
    """A connection for FastStream, beside the store's own."""

    client: PatientClient

    def __init__(self, address: Address, options: JetStreamOptions, url_source: Any) -> None:
        super().__init__(address, options, url_source)
        self.client = self._client = PatientClient(self._where, self._lost, self._refused)
        self.client.ready = self.connected


class WorkerBroker(NatsBroker):
    """A FastStream broker on a connection that was opened, and is closed, elsewhere."""

    def __init__(self, connection: WorkerConnection) -> None:
        super().__init__(str(connection), logger=None, graceful_timeout=1.0)
        self._own = connection

    async def _connect(self) -> NatsClient:
        self.config.connect(self._own.client)
        return self._own.client


class JetStreamDelivery:
    """A message of the work queue as a `tailrace.worker.run.RunDelivery`."""

    def __init__(self, runs: JetStreamRunQueue, client: NatsClient, message: Msg) -> None:
        self._runs, self._client, self._message = runs, client, message
        self.attempt = message.metadata.num_delivered or 1
        self.submitted_ms = int(message.metadata.timestamp.timestamp() * 1000)
        self._command: Command | None = None

    @property
    def command(self) -> Command:
        if self._command is None:
            self._command = decode_command(self._message.headers, self._message.data)
        return self._command

    @property
    def stream_id(self) -> str | None:
        try:
            return validate_stream_id((self._message.headers or {}).get(ID, ""))
        except InvalidStreamId:
            return None

    async def ack(self) -> None:
        await self._reply(b"+ACK")

    async def retry(self, delay: float) -> None:
        await self._reply(b"-NAK " + json.dumps({"delay": int(delay * 1e9)}).encode())

    async def working(self) -> None:
        await self._reply(b"+WPI")

    async def bury(self, reason: str) -> None:
        if self._command is not None:
            await self._runs.bury(self._command, reason)
        else:
            await self._bury_unread(reason)
        await self.ack()

    async def _bury_unread(self, reason: str) -> None:
        """The message as it came, under its own subject's name among the dead letters."""
        prefix, _, *rest = self._message.subject.split(".")
        headers = (self._message.headers or {}) | {REASON: json.dumps(reason)}
        try:
            await self._client.jetstream().publish(
                ".".join((prefix, "dead", *rest)), self._message.data, headers=headers
            )
        except (NatsError, OSError, TimeoutError) as error:
            raise BrokerUnavailable(f"The dead letter was not confirmed: {error}") from error

    async def _reply(self, verb: bytes) -> None:
        # not the message's own ack(): that refuses a second answer, and a late `working` is no error
        try:
            await self._client.publish(self._message.reply, verb)
        except (NatsError, OSError) as error:
            raise BrokerUnavailable(f"The broker did not hear of a delivery: {error}") from error


class JetStreamSource:
    """`tailrace.worker.app.Source` over `JetStreamRunQueue`."""

    def __init__(
        self, runs: JetStreamRunQueue, member_id: str, runner: Runner, handlers: Mapping[str, Handler]
    ) -> None:
        self._runs, self._member_id, self._runner, self._handlers = runs, member_id, runner, tuple(handlers)
        self._connection: WorkerConnection | None = None
        self._broker: WorkerBroker | None = None
        self._pulls: list[Any] = []
        self._mending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._ensure_consumers()
        store = self._runs._connection
        connection = await WorkerConnection.open(store._where(), store.options, store._url_source)
        self._connection = cast("WorkerConnection", connection)
        self._connection.client.barren = self._mend
        self._broker = WorkerBroker(self._connection)
        self._broker.subscriber(self._runs.cancel_subject(self._member_id), decoder=_raw)(self._cancel)
        try:
            await self._broker.start()  # cancels are heard before the first run is taken
            for name in self._handlers:
                await self._pull(self._broker, name).start()
        except (NatsError, OSError, TimeoutError) as error:
            raise BrokerUnavailable(f"{store} did not answer a worker: {error}") from error

    async def _ensure_consumers(self) -> None:
        for name in self._handlers:
            await self._runs.ensure_consumer(name)

    def _mend(self) -> None:
        if self._pulls and (self._mending is None or self._mending.done()):
            self._mending = asyncio.create_task(self._try_to_mend(), name="worker consumers")

    async def _try_to_mend(self) -> None:
        try:
            await self._ensure_consumers()
        except BrokerError as error:  # the next fetch that brings nothing tries again
            log.warning("consumers-not-ensured", error=error.message)

    def _pull(self, broker: WorkerBroker, name: str) -> Any:
        config = self._runs.consumer_config(name)
        subscriber = broker.subscriber(
            self._runs.subject(name),
            stream=JStream(self._runs.stream, declare=False),
            durable=config.durable_name,
            config=config,
            pull_sub=PullSub(batch_size=1, timeout=FETCH_TIMEOUT),
            ack_policy=AckPolicy.MANUAL,
            max_workers=1,
            decoder=_raw,
        )
        subscriber(self._take)
        self._pulls.append(subscriber)
        return subscriber

    async def _take(self, message: NatsMessage) -> None:
        assert self._connection is not None
        client = self._connection.client
        client.fetched()
        await self._runner.handle(JetStreamDelivery(self._runs, client, message.raw_message))
        await self._runner.room()

    async def _cancel(self, message: NatsMessage) -> None:
        stream_id = message.body.decode(errors="replace")
        found = self._runner.cancel(stream_id)
        log.info("run-cancelled" if found else "cancel-of-no-run", stream=stream_id)

    async def stop(self) -> None:
        pulls, self._pulls = self._pulls, []
        await asyncio.gather(*(_stop(subscriber) for subscriber in pulls))

    async def close(self) -> None:
        await self.stop()
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.wait({self._mending})
        if self._broker is not None:
            await asyncio.gather(*(_stop(subscriber) for subscriber in self._broker.subscribers))
            self._broker = None
        if self._connection is not None:
            await self._connection.close()


async def _raw(message: NatsMessage) -> bytes:
    """The body as it came: an input is decoded by its handler's model, not by its looks."""
    return message.body


async def _stop(subscriber: Any) -> None:
    try:
        await subscriber.stop()
    except (NatsError, OSError) as error:  # the broker is away: there is nothing left to unsubscribe
        log.info("unsubscribe-unheard", error=str(error))


def make(store: StreamStore, runner: Runner, handlers: Mapping[str, Handler]) -> JetStreamSource:
    """The source for a store whose queue declares the kind ``jetstream``."""
    return JetStreamSource(cast("JetStreamRunQueue", store.runs), store.members.id, runner, handlers)
