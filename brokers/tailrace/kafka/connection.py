"""Requests to Kafka's brokers, with every failure as one of ours.

Theory. The client library keeps the sockets, the login and the cluster's metadata; requests are this adapter's own.
Its consumer and producer are not used: a consumer that waits for news cannot be given another partition before the
wait is over, and a producer that numbers its batches is lost after one refusal. Neither is needed: a reader names its
offset, and whether a record counts is said by its condition (`chain`), however often and late it is stored.

Rules. A broker answers one request at a time on a connection, so every kind of request has a connection of its own
(its *lane*), and whatever waits never holds up what does not; nor does a connection that is being made any other. A
request ends in one of three ways: an answer, `Unanswered`, or a `BrokerError` (it was never sent, or the broker refused
it).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

from aiokafka import errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import create_conn
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest, OffsetResetStrategy
from aiokafka.structs import TopicPartition

from tailrace._clock import Clock
from tailrace.errors import BrokerError, BrokerUnavailable
from tailrace.kafka import refusals
from tailrace.kafka.address import Address
from tailrace.kafka.options import KafkaOptions
from tailrace.kafka.refusals import Unanswered
from tailrace.kafka.security import client_options
from tailrace.tasks import end

FETCH, OLDEST_FETCH = 1, 11  # the API and its version since Kafka 2.4
LOOK_UP, READ, WRITE, FOLLOW = 10, 20, 30, 100  # lanes, and the first of several
READ_LANES = 4
RETRY_PAUSE = 0.05
CLOSE_PATIENCE = 2.0
LEAVE_PATIENCE = 0.5

# the library's own log lines repeat what our errors say: with no handler configured they would go to stderr
logging.getLogger("aiokafka").addHandler(logging.NullHandler())
_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A partition."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


class Fetched(NamedTuple):
    """A broker's answer for one partition. ``high`` is the offset behind the last readable record, ``first`` that of
    the oldest one kept."""

    error: int
    high: int
    first: int
    data: bytes


class _Client(AIOKafkaClient):  # type: ignore[misc]  # the library has no types
    """The library's, which makes one connection at a time, however long a silent node lets it wait. This one waits for
    whom it connects to alone, and only for ``patience`` seconds; no longer either where it asks for the metadata."""

    _get_conn_lock = nullcontext()  # instead of the one lock for all

    def __init__(self, patience: float, **library: Any) -> None:
        super().__init__(**library)
        self._patience = patience
        self._connecting: dict[tuple[Any, int], asyncio.Lock] = {}

    async def _get_conn(self, node_id: Any, *, group: int = ConnectionGroup.DEFAULT, no_hint: bool = False) -> Any:
        found = self._conns.get((node_id, group))
        if found is not None and found.connected():
            return found
        try:
            async with (
                asyncio.timeout(self._patience),
                self._connecting.setdefault((node_id, group), asyncio.Lock()),
            ):
                found = await super()._get_conn(node_id, group=group, no_hint=no_hint)
        except TimeoutError:
            return None
        if found is not None and group == ConnectionGroup.DEFAULT:
            found._request_timeout = self._patience
        return found


class Connection:
    """Made by `Connection.open`."""

    def __init__(self, address: Address, options: KafkaOptions, source: Callable[[], Address] | None = None) -> None:
        self.address = address
        self._source = source
        self._bootstrapping = False
        self.options = options
        self.clock = Clock()
        self.library = client_options(options) | {"client_id": options.name, "bootstrap_servers": address.bootstrap}
        patience = options.fetch_wait + options.request_timeout
        self.closed = False
        self.damaged = 0
        self._client = _Client(options.request_timeout, **self.library, request_timeout_ms=int(patience * 1000) + 500)
        self.topics: list[str] = []
        self.unconfirmed: Callable[[int], None] = lambda node: None  # hears of a node that did not answer an append
        self._asked: dict[int | None, dict[Place, asyncio.Future[int]]] = {}  # by node
        self._asking: dict[int | None, asyncio.Task[None]] = {}

    def __str__(self) -> str:
        return str(self.address)

    @classmethod
    async def open(
        cls, address: Address, options: KafkaOptions, source: Callable[[], Address] | None = None
    ) -> Connection:
        """Connect, trying for `connect_timeout`. ``source`` says where the broker is if it is not found again. Raises
        `BrokerUnavailable`, `BrokerRefused`, `BrokerUnsuitable`."""
        connection = cls(address, options, source)
        try:
            await connection._connect()
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _connect(self) -> None:
        error: BaseException = TimeoutError("no answer in time")
        try:
            async with asyncio.timeout(self.options.connect_timeout):
                while True:
                    try:
                        await self._probe()
                        await _bootstrap(self._client)
                        return
                    except (OSError, EOFError, errors.KafkaError, NotImplementedError) as found:
                        error = found.__cause__ if isinstance(found.__cause__, OSError | EOFError) else found
                        if refusals.is_final(error):
                            break
                    await asyncio.sleep(RETRY_PAUSE)
        except TimeoutError:
            pass
        raise refusals.connecting(error, str(self)) from None

    async def _probe(self) -> None:
        """Connect to one of the named brokers: the library's own bootstrap does not tell why it failed."""
        error: BaseException = OSError("no broker is named")
        for host, port in self.address.servers:
            try:
                found = await create_conn(
                    host, port, **_connecting(self.library), request_timeout_ms=int(self.options.connect_timeout * 1000)
                )
            except (OSError, EOFError, errors.KafkaError, asyncio.CancelledError) as failure:
                if isinstance(failure, asyncio.CancelledError):
                    raise
                error = failure
                continue
            versions = found._versions
            found.close()
            if versions.get(FETCH, (0, 0))[1] < OLDEST_FETCH:
                raise errors.IncompatibleBrokerVersion
            return
        raise error

    # --- where partitions are

    async def watch(self, topics: Sequence[str]) -> None:
        """Keep the metadata of these topics."""
        self.topics = list(topics)
        await self._client.set_topics(self.topics)

    def leader(self, place: Place) -> int | None:
        """The node that leads the partition, as far as is known."""
        leader: int | None = self._client.cluster.leader_for_partition(TopicPartition(*place))
        return None if leader in (None, -1) else leader

    async def find_leader(self, place: Place) -> int:
        """The same, asking where it is not known. Raises `BrokerUnavailable`."""
        if (leader := self.leader(place)) is not None:
            return leader
        await self.relearn()
        if (leader := self.leader(place)) is not None:
            return leader
        raise BrokerUnavailable(f"Nobody leads {place} at {self}")

    async def relearn(self) -> None:
        """Ask for the metadata anew, and where no node that is known answers, those that were named at first."""
        try:
            async with asyncio.timeout(self.options.request_timeout):
                if not await self._client.force_metadata_update() and not self._bootstrapping:
                    await self._find_again()
        except TimeoutError:
            pass

    async def _find_again(self) -> None:
        self._bootstrapping = True
        try:
            if self._source is not None:
                self.address = self._source()
            await find_again(self._client, self.address)
        except BrokerError:
            pass  # whoever asks, asks again
        finally:
            self._bootstrapping = False

    def damage(self, place: Place, offsets: tuple[int, int]) -> None:
        """Count a batch that cannot be read, and tell the first."""
        self.damaged += 1
        if self.damaged == 1:
            _log.warning("Skipped a batch that is damaged in %s: offsets %d to %d", place, offsets[0], offsets[1] - 1)

    # --- requests

    async def request(self, node: int, request: Any, lane: int, timeout: float | None = None) -> Any:
        """Raises `BrokerUnavailable` where it was not sent, else `Unanswered`."""
        try:
            async with asyncio.timeout(timeout or self.options.request_timeout):
                return await self._client.send(node, request, group=lane)
        except errors.NodeNotReadyError as error:
            raise BrokerUnavailable(f"Node {node} of {self} cannot be reached") from error
        except (OSError, EOFError, errors.KafkaError) as error:
            if isinstance(error, TimeoutError):
                self.hang_up(node, lane)
            raise Unanswered(f"Node {node} of {self} did not answer: {str(error) or type(error).__name__}") from error

    def hang_up(self, node: int, lane: int) -> None:
        """Close a connection that answers no more, or whose answer nobody awaits."""
        connection = self._client._conns.get((node, lane))
        if connection is not None and connection._writer is not None:
            socket = connection._writer.transport
            connection.close()
            socket.abort()  # by TLS a goodbye would wait for the answer

    async def ends(self, places: Sequence[Place]) -> list[int]:
        """The offset behind the last readable record of each partition, as its leader has it after this call began.
        Raises `BrokerUnavailable`."""
        return list(await asyncio.gather(*(self.end(place) for place in places)))

    async def end(self, place: Place) -> int:
        node = self.leader(place)  # each for itself: one that does not answer must not hold up the others
        asked = self._asked.setdefault(node, {})
        future = asked.get(place)
        if future is None:
            future = asked[place] = asyncio.get_running_loop().create_future()
            future.add_done_callback(_retrieve)
            if node not in self._asking:  # one look-up at a time: what is asked meanwhile goes together
                self._asking[node] = asyncio.create_task(self._ask_ends(node))
        return await asyncio.shield(future)

    async def _ask_ends(self, node: int | None) -> None:
        try:
            while node in self._asked:
                await asyncio.sleep(0)
                asked = self._asked.pop(node)
                failure: BrokerError = BrokerUnavailable("It was closed")
                try:
                    await self._find_offsets(asked, OffsetResetStrategy.LATEST, partial(_tell, asked))
                except BrokerError as error:
                    failure = error
                finally:
                    for future in asked.values():
                        if not future.done():
                            future.set_exception(failure)
        finally:
            del self._asking[node]

    async def offsets(self, places: Sequence[Place], which: int) -> dict[Place, int]:
        """The partitions' first (`OffsetResetStrategy.EARLIEST`) or end offsets. Raises `BrokerUnavailable`."""
        found: dict[Place, int] = {}
        await self._find_offsets(places, which, found.__setitem__)
        return found

    async def _find_offsets(self, places: Iterable[Place], which: int, tell: Callable[[Place, int], None]) -> None:
        """The same; ``tell`` hears each as soon as it is found, whatever becomes of the others."""
        deadline = asyncio.get_running_loop().time() + self.options.request_timeout
        missing = set(places)
        while (trouble := await self._ask_offsets(missing, which, tell)) is not None:
            if not isinstance(trouble, BrokerUnavailable) or asyncio.get_running_loop().time() > deadline:
                raise trouble
            await self.relearn()
            await asyncio.sleep(RETRY_PAUSE)

    async def _ask_offsets(
        self, missing: set[Place], which: int, tell: Callable[[Place, int], None]
    ) -> BrokerError | None:
        """Ask once; what is answered is not missing any more. The reason where something is not."""
        nodes: dict[int, dict[str, list[tuple[int, int]]]] = {}
        for place in missing:
            node = await self.find_leader(place)
            nodes.setdefault(node, {}).setdefault(place.topic, []).append((place.partition, which))
        trouble: BrokerError | None = None
        for node, topics in nodes.items():
            try:
                answer = await self.request(node, OffsetRequest(-1, 0, list(topics.items())), LOOK_UP)
            except Unanswered as error:
                raise BrokerUnavailable(str(error)) from None
            for topic, partitions in answer.topics:
                for partition, code, _, offset, *_ in partitions:
                    if code == 0:
                        missing.discard(Place(topic, partition))
                        tell(Place(topic, partition), offset)
                    elif trouble is None or isinstance(trouble, BrokerUnavailable):  # the others may be over soon
                        trouble = refusals.of(code, f"offsets of {topic}-{partition} at {self}")
        return trouble

    async def fetch(self, place: Place, offset: int, max_bytes: int) -> Fetched:
        """What there is from ``offset`` on, at least one batch, at once; or, as the answer's error, that the offset is
        out of range or the batch damaged. Raises `BrokerError`."""
        lane = READ + place.partition % READ_LANES
        deadline = asyncio.get_running_loop().time() + self.options.request_timeout
        while True:
            node = await self.find_leader(place)
            request = FetchRequest(0, 1, max_bytes, 0, [(place.topic, [(place.partition, offset, max_bytes)])])
            try:
                answer = await self.request(node, request, lane)
            except Unanswered as error:
                raise BrokerUnavailable(str(error)) from None
            fetched, is_late = fetched_of(answer).get(place), asyncio.get_running_loop().time() > deadline
            if fetched is None:  # the user's quota is used up: nothing is answered now
                if is_late:
                    raise BrokerUnavailable(f"{place} at {self} is not read: a quota throttles this user")
                await asyncio.sleep(max(answer.throttle_time_ms / 1000, RETRY_PAUSE))
                continue
            if fetched.error not in refusals.MOVED or is_late:
                if fetched.error not in (0, refusals.OFFSET_OUT_OF_RANGE, *refusals.DAMAGED):
                    raise refusals.of(fetched.error, f"read of {place} at {self}")
                return fetched
            await self.relearn()
            await asyncio.sleep(RETRY_PAUSE)

    async def close(self) -> None:
        """Close every connection. A second call does nothing."""
        self.closed = True
        await end(*self._asking.values())
        for asked in self._asked.values():
            for future in asked.values():
                if not future.done():
                    future.set_exception(BrokerUnavailable("It was closed"))
        try:
            async with asyncio.timeout(CLOSE_PATIENCE):  # a peer that is gone says no goodbye
                await self._client.close()
        except TimeoutError:
            pass


async def find_again(client: AIOKafkaClient, address: Address) -> None:
    """Look for a cluster at ``address`` of which no node that ``client`` knows answers. In vain is no error: whoever
    asks, asks again."""
    client._bootstrap_servers = address.bootstrap
    try:
        await _bootstrap(client)
        await client.force_metadata_update()
    except (OSError, EOFError, errors.KafkaError):
        pass


async def _bootstrap(client: AIOKafkaClient) -> None:
    """The library's, which leaves a connection open if it is cancelled while it asks: so it is given a moment more."""
    asking = asyncio.create_task(client.bootstrap())
    asking.add_done_callback(_retrieve)
    try:
        await asyncio.shield(asking)
    finally:
        try:
            await asyncio.wait({asking}, timeout=LEAVE_PATIENCE)
        finally:
            asking.cancel()


def fetched_of(answer: Any) -> dict[Place, Fetched]:
    """The partitions of a fetch's answer (version 11)."""
    found: dict[Place, Fetched] = {}
    for topic, partitions in answer.topics:
        for partition, code, high, _, first, *_, data in partitions:
            found[Place(topic, partition)] = Fetched(code, high, first, data or b"")
    return found


def _connecting(library: dict[str, Any]) -> dict[str, Any]:
    """The library's arguments that a lone connection takes."""
    return {name: value for name, value in library.items() if name != "bootstrap_servers"}


def _tell(asked: dict[Place, asyncio.Future[int]], place: Place, end: int) -> None:
    if not (future := asked[place]).done():
        future.set_result(end)


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
