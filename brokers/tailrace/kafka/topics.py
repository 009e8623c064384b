"""The topics that a deployment needs: made with explicit settings, or checked against them.

Theory. Creating a topic that is there is refused by name, so processes that start at once need no lock. One that
differs is never changed: it is refused, naming the topic, the setting, and how to mend it. Settings that may be more
generous than asked for are only compared that way. The number of partitions is never changed by anybody: it says where
a stream is.

::

    <prefix>.chunks     records of streams, by hash of the id
    <prefix>.claims     where to begin to read a stream (`claims`), by hash of the id
    <prefix>.segments   sealed streams, by hash of the id
    <prefix>.members    heartbeats, one partition
    <prefix>.runs       commands that are not done (`runs`), by hash of the stream's id; compacted
    <prefix>.cancels    which runs to stop, by member, one partition
    <prefix>.dead       commands that nobody can run, one partition
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidReplicationFactorError, KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.offset import OffsetResetStrategy

from tailrace.errors import BrokerFailed, BrokerRefused, BrokerUnavailable, BrokerUnsuitable
from tailrace.kafka import permissions, refusals
from tailrace.kafka.connection import Connection, Place
from tailrace.kafka.options import KafkaOptions
from tailrace.kafka.wire import digest

ATTEMPTS = 100
PAUSE = 0.05
PATIENCE = 9.0  # seconds for all of it
T = TypeVar("T")
_AT_LEAST = frozenset({"retention.ms", "max.message.bytes", "min.insync.replicas", "delete.retention.ms"})
_FREE = frozenset({"segment.ms"})  # how the broker cuts its files is the operator's
_UNLIMITED = "-1"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it must be. ``partitions_setting`` names the setting that chose their number."""

    name: str
    partitions: int
    replicas: int
    settings: Mapping[str, str] = field(default_factory=dict)
    partitions_setting: str = ""


class Names:
    """Names and places of one deployment."""

    def __init__(self, options: KafkaOptions) -> None:
        self.chunks = f"{options.prefix}.chunks"
        self.claims = f"{options.prefix}.claims"
        self.segments = f"{options.prefix}.segments"
        self.members = Place(f"{options.prefix}.members", 0)
        self.cancels = Place(f"{options.prefix}.cancels", 0)
        self.dead = Place(f"{options.prefix}.dead", 0)
        self.all_runs = [Place(f"{options.prefix}.runs", number) for number in range(options.claims_partitions)]
        self.all_claims = [Place(self.claims, number) for number in range(options.claims_partitions)]
        self.all_records = [Place(self.chunks, number) for number in range(options.partitions)]
        self._partitions, self._claims_partitions = options.partitions, options.claims_partitions
        self.key = lru_cache(maxsize=16384)(digest)

    def _number(self, stream_id: str) -> int:
        return int(self.key(stream_id)[:8], 16)

    def records(self, stream_id: str) -> Place:
        """Where the stream's records are."""
        return self.all_records[self._number(stream_id) % self._partitions]

    def sealed(self, stream_id: str) -> Place:
        """Where its segments are."""
        return Place(self.segments, self._number(stream_id) % self._partitions)

    def runs(self, stream_id: str) -> Place:
        """Where its commands are."""
        return self.all_runs[self.claims_partition(stream_id)]

    def claims_partition(self, stream_id: str) -> int:
        return self._number(stream_id) % self._claims_partitions


def wanted(names: Names, options: KafkaOptions) -> list[Topic]:
    """The store's topics."""
    common = settings_of(options, options.retention)
    members = settings_of(options, options.member_retention) | {"segment.ms": "60000"}
    return [
        Topic(names.chunks, options.partitions, options.replicas, common, "PARTITIONS"),
        Topic(names.claims, options.claims_partitions, options.replicas, common, "CLAIMS_PARTITIONS"),
        Topic(names.segments, options.partitions, options.replicas, common, "PARTITIONS"),
        Topic(names.members.topic, 1, options.replicas, members),
        Topic(
            names.all_runs[0].topic, options.claims_partitions, options.replicas, _runs(options), "CLAIMS_PARTITIONS"
        ),
        Topic(names.cancels.topic, 1, options.replicas, members),
        Topic(names.dead.topic, 1, options.replicas, common),
    ]


def settings_of(options: KafkaOptions, retention: float) -> dict[str, str]:
    """The settings of a topic that keeps records for ``retention`` seconds."""
    return {
        "cleanup.policy": "delete",  # never compact: it was seen to keep a claim that lost and remove the one that won
        "retention.ms": str(int(retention * 1000)),
        "retention.bytes": _UNLIMITED,  # by size it would remove acknowledged records
        "segment.ms": str(int(min(retention / 8, 6 * 3600) * 1000)),
        "message.timestamp.type": "LogAppendTime",
        "compression.type": "producer",  # records as they were sent: no codec of the broker's choice
        "max.message.bytes": str(options.max_message_bytes),
        "min.insync.replicas": str(options.min_insync_replicas),
        "unclean.leader.election.enable": "false",
    }


def _runs(options: KafkaOptions) -> dict[str, str]:
    """A command waits for as long as it takes: only compaction removes what is done."""
    aged = settings_of(options, options.retention)
    return {name: value for name, value in aged.items() if not name.startswith("retention.")} | {
        "cleanup.policy": "compact",
        "delete.retention.ms": "86400000",  # who reads from the beginning must still see what is done
        "segment.ms": "3600000",  # what is done since the last compaction is read at every start
    }


async def check(connection: Connection, topics: Sequence[Topic]) -> None:
    """Make or check every topic, and return when each partition has a leader. Idempotent, also from several processes
    at once. Raises `BrokerError`."""
    admin = AIOKafkaAdminClient(**connection.library, request_timeout_ms=int(PATIENCE * 1000))  # a cold broker is slow
    try:
        async with asyncio.timeout(PATIENCE):
            await admin.start()
            await _find_node(admin)
            await _check(admin, connection, topics)
            await connection.watch([*connection.topics, *(topic.name for topic in topics)])
            await _await_leaders(connection, topics)
    except (TimeoutError, OSError, KafkaError) as error:
        raise BrokerUnavailable(f"The topics at {connection} cannot be set up: {error!r}") from error
    finally:
        await admin.close()


async def _find_node(admin: AIOKafkaAdminClient) -> None:
    """A broker that is alone and stalled is fenced for a moment, and names no node: not even itself."""
    while admin._client.get_random_node() is None:
        await admin._client.force_metadata_update()
        await asyncio.sleep(PAUSE)


async def _check(admin: AIOKafkaAdminClient, connection: Connection, topics: Sequence[Topic]) -> None:
    for _ in range(ATTEMPTS):
        found = {topic["topic"]: topic for topic in await admin.describe_topics([topic.name for topic in topics])}
        missing = [topic for topic in topics if found[topic.name]["error_code"] != 0]
        if not missing:
            break
        await _create(admin, connection, missing)
        await asyncio.sleep(PAUSE)
    else:
        raise BrokerUnavailable(f"{connection} does not make the topics {', '.join(topic.name for topic in missing)}")
    await _insist(lambda: _check_permissions(admin, connection, topics))
    held = await _insist(lambda: _settings(admin, connection, topics))
    for topic in topics:
        compare(topic, found[topic.name]["partitions"], held.get(topic.name, {}), str(connection))


async def _insist(ask: Callable[[], Awaitable[T]]) -> T:
    """Each question goes to some node, and one may not know yet of a topic that another has made: ask again."""
    for _ in range(ATTEMPTS - 1):
        try:
            return await ask()
        except BrokerUnavailable:
            await asyncio.sleep(PAUSE)
    return await ask()


async def _settings(
    admin: AIOKafkaAdminClient, connection: Connection, topics: Sequence[Topic]
) -> dict[str, dict[str, str | None]]:
    held: dict[str, dict[str, str | None]] = {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics]
    for answer in await admin.describe_configs(resources):
        for code, _, _, name, items in answer.resources:
            if code != 0:
                raise refusals.of(code, f"settings of topic {name} at {connection}")
            held[name] = {item[0]: item[1] for item in items}
    return held


async def _check_permissions(admin: AIOKafkaAdminClient, connection: Connection, topics: Sequence[Topic]) -> None:
    answer = await admin._send_request(permissions.PermissionsRequest([topic.name for topic in topics]))
    for code, name, *_ in answer.topics:
        if code in refusals.MOVED:  # of such a topic it does not tell what is forbidden
            raise refusals.of(code, f"permissions for topic {name} at {connection}")
    for name, operations in permissions.missing(answer).items():
        raise BrokerRefused(
            f"Topic {name} at {connection}: the user may not {', '.join(operations)}", hint=refusals.GRANT
        )


async def _create(admin: AIOKafkaAdminClient, connection: Connection, topics: Sequence[Topic]) -> None:
    new = [
        NewTopic(topic.name, topic.partitions, topic.replicas, topic_configs=dict(topic.settings)) for topic in topics
    ]
    answer = await admin.create_topics(new)
    for name, code, *words in answer.topic_errors:  # the library raises none of them
        if code in (0, TopicAlreadyExistsError.errno) or _is_fenced(code, words):
            continue
        error = refusals.of(code, f"making topic {name} at {connection}")
        if isinstance(error, BrokerFailed):
            raise BrokerUnsuitable(
                f"Topic {name} cannot be made at {connection}: {(words or [None])[0] or for_code(code).__name__}",
                hint="Mend the broker's set-up, ask for fewer replicas, or make the topic by hand.",
            )
        if not isinstance(error, BrokerUnavailable):
            raise error


def _is_fenced(code: int, words: Sequence[str | None]) -> bool:
    """Whether nobody could keep the topic in that moment (`_find_node`)."""
    return code == InvalidReplicationFactorError.errno and "fenced" in str(words)


def compare(topic: Topic, partitions: Sequence[Mapping[str, Any]], held: Mapping[str, str | None], where: str) -> None:
    """Raise `BrokerUnsuitable` for the first thing about an existing topic that does not do."""
    if len(partitions) != topic.partitions:
        mend = (
            f"Set TAILRACE_KAFKA_{topic.partitions_setting}={len(partitions)}"
            if topic.partitions_setting
            else "Delete it"
        )
        raise BrokerUnsuitable(
            f"Topic {topic.name} at {where}: it has {len(partitions)} partitions, and must have {topic.partitions}",
            hint=f"{mend}, or give Tailrace another prefix; never change the number of a topic in use.",
        )
    copies = min(len(partition["replicas"]) for partition in partitions)
    if copies < topic.replicas:
        raise BrokerUnsuitable(
            f"Topic {topic.name} at {where}: it has {copies} replicas, and must have {topic.replicas} or more",
            hint="Reassign its partitions with kafka-reassign-partitions.sh, or ask for fewer replicas.",
        )
    for setting, is_now, must_be in _differences(topic.settings, held):
        change = f"--add-config {setting}={topic.settings[setting]}"
        raise BrokerUnsuitable(
            f"Topic {topic.name} at {where}: {setting} is {is_now}, and must be {must_be}",
            hint=f"Run kafka-configs.sh --alter --entity-type topics --entity-name {topic.name} {change}, "
            "or give Tailrace another prefix.",
        )


def _differences(settings: Mapping[str, str], held: Mapping[str, str | None]) -> Iterator[tuple[str, str | None, str]]:
    for setting, value in settings.items():
        is_now = held.get(setting)
        if setting in _FREE or is_now == value:
            continue
        if setting not in _AT_LEAST:
            yield setting, is_now, value
        elif is_now is None or (int(is_now) < int(value) and is_now != _UNLIMITED):
            yield setting, is_now, f"{value} or more"


async def _await_leaders(connection: Connection, topics: Sequence[Topic]) -> None:
    places = [Place(topic.name, number) for topic in topics for number in range(topic.partitions)]
    while any(connection.leader(place) is None for place in places):
        await connection.relearn()
        await asyncio.sleep(PAUSE)
    while True:  # a broker that was named the leader of a new partition may not know it yet
        try:
            await connection.offsets(places, OffsetResetStrategy.EARLIEST)
            return
        except BrokerUnavailable:
            await asyncio.sleep(PAUSE)
