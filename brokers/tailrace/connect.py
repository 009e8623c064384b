"""From a URL to a store: `connect`.

====================  ==============================================================================
``memory://``         in this process, gone with it
``embedded://[DIR]``  a NATS JetStream server of this machine's own, shared by the processes that name
                      the same folder (default: the user's data folder)
``nats://HOST…``      a NATS JetStream server or cluster (``tls://`` insists on TLS)
``kafka://HOST…``     Apache Kafka (``kafka+ssl://`` with TLS)
``embedded+kafka://[DIR]``
                      a Kafka node of this machine's own, shared as ``embedded://`` is
``redis://HOST…``     Redis or Valkey (``rediss://`` with TLS), in the keys of npm assistant-stream
``redis+sentinel://HOST…/SERVICE``
                      the same, by Sentinel (``rediss+sentinel://`` with TLS)
====================  ==============================================================================

Each adapter is imported when its scheme is asked for, so that a missing extra is an error of its users alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from tailrace.errors import BrokerUnsuitable, MissingExtra, UnknownScheme
from tailrace.model import Limits

if TYPE_CHECKING:
    from tailrace.contracts import Capabilities
    from tailrace.embedded import Embedded
    from tailrace.jetstream.options import JetStreamOptions
    from tailrace.kafka.options import KafkaOptions
    from tailrace.log import Broker
    from tailrace.redis.options import RedisOptions
    from tailrace.store import LogStore

RETENTION_MARGIN = 3600.0  # seconds that the broker keeps records beyond what a stream may need them for

LEAST_RECORD_BYTES = 96 * 1024  # a message of 128 KiB: a heartbeat and the first line of a sealed stream need room

LEAST_MEMBER_RETENTION = 120.0  # seconds; a member beats five times a lease, and its last beat must still be there


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a store can be told. ``fit_chunks``: where a broker's messages are too small for ``limits.max_chunk_bytes``,
    a chunk may be as large as fits, and the broker is not refused; where that limit is None, this is always so.
    ``lease_ttl``: seconds of silence after which a process counts as lost; ``linger``: seconds that a tail outlives its
    last reader; ``request_timeout``: seconds that a new request waits for the broker; ``jetstream``, ``kafka`` and
    ``redis``: how each is set up and reached (their times are computed here); ``sync_always``: the embedded server
    writes to the disk before every acknowledgement."""

    limits: Limits = field(default_factory=Limits)
    fit_chunks: bool = False
    lease_ttl: float = 10.0
    linger: float = 5.0
    request_timeout: float = 10.0
    jetstream: JetStreamOptions | None = None
    kafka: KafkaOptions | None = None
    redis: RedisOptions | None = None
    sync_always: bool = False


async def connect(url: str, options: StoreOptions | None = None) -> LogStore:
    """Open the store at ``url``; close it with ``aclose`` or ``async with``.

    Raises `UnknownScheme`, `MissingExtra`, and as `BrokerError`: `BrokerUnavailable`, `BrokerRefused` (credentials,
    TLS), `BrokerUnsuitable` (too old, no JetStream, differing settings, messages too small for the largest chunk).
    """
    scheme, separator, rest = url.partition("://")
    opener = _OPENERS.get(scheme.lower()) if separator else None
    if opener is None:
        known = ", ".join(f"{name}://" for name in _OPENERS)
        raise UnknownScheme(f"No store is known for {_without_secrets(url)!r}", hint=f"Use one of {known}")
    return await opener(url, rest, options or StoreOptions())


async def _memory(url: str, rest: str, options: StoreOptions) -> LogStore:
    from tailrace.memory import MemoryLog, MemoryStore

    limits = _fitting(options, MemoryLog.max_record_bytes, _Place(url))
    store = MemoryStore(limits, lease_ttl=options.lease_ttl, linger=options.linger, gc_interval=60.0)
    return await store.start()


async def _embedded(url: str, rest: str, options: StoreOptions) -> LogStore:
    embedded = await _attach(rest, options, "nats")
    try:
        return await _open_jetstream(embedded.url, options, lambda: embedded.url, embedded.close)
    except BaseException:
        await embedded.close()
        raise


async def _nats(url: str, rest: str, options: StoreOptions) -> LogStore:
    return await _open_jetstream(url, options)


async def _open_jetstream(
    url: str,
    options: StoreOptions,
    url_source: Callable[[], str] | None = None,
    also_close: Callable[[], Awaitable[None]] | None = None,
) -> LogStore:
    from tailrace.jetstream import CAPABILITIES, open_jetstream
    from tailrace.jetstream.log import HEADER_ROOM
    from tailrace.jetstream.options import JetStreamOptions

    chosen = replace(
        options.jetstream or JetStreamOptions(),
        retention=_retention(options),
        ack_wait=3 * options.lease_ttl,
        member_retention=_member_retention(options),
        max_bytes=options.limits.max_total_bytes,
    )
    broker = await open_jetstream(url, options=chosen, url_source=url_source)
    place = _Place(url, "max_payload in the nats-server's configuration", HEADER_ROOM)
    return await _store_over(broker, CAPABILITIES, options, place, also_close)


async def _embedded_kafka(url: str, rest: str, options: StoreOptions) -> LogStore:
    embedded = await _attach(rest, options, "kafka")
    try:
        return await _open_kafka(embedded.url, options, lambda: embedded.url, embedded.close)
    except BaseException:
        await embedded.close()
        raise


async def _kafka(url: str, rest: str, options: StoreOptions) -> LogStore:
    return await _open_kafka(url, options)


async def _open_kafka(
    url: str,
    options: StoreOptions,
    url_source: Callable[[], str] | None = None,
    also_close: Callable[[], Awaitable[None]] | None = None,
) -> LogStore:
    with _extra("kafka", "aiokafka"):
        from tailrace.kafka.broker import open_kafka
    from tailrace.kafka import CAPABILITIES, KafkaOptions
    from tailrace.kafka.log import HEADER_ROOM

    _refuse_total_bytes(
        options.limits,
        "Kafka, which never refuses for size",
        hint="Unset it and watch the brokers' disks, or use another broker.",
    )
    chosen = replace(
        options.kafka or KafkaOptions(),
        retention=_retention(options),
        member_retention=_member_retention(options),
    )
    broker = await open_kafka(url, options=chosen, url_source=url_source)
    place = _Place(url, "the topics' max.message.bytes and TAILRACE_KAFKA_MAX_MESSAGE_BYTES", HEADER_ROOM)
    return await _store_over(broker, CAPABILITIES, options, place, also_close)


async def _redis(url: str, rest: str, options: StoreOptions) -> LogStore:
    with _extra("redis", "redis"):
        from tailrace.redis.broker import open_redis
    from tailrace.redis import RedisOptions

    _refuse_total_bytes(
        options.limits, "Redis, which has a limit of its own", hint="Unset it, and set maxmemory on the server."
    )
    chosen = replace(
        options.redis or RedisOptions(),
        retention=_retention(options),
        ack_wait=3 * options.lease_ttl,
        member_retention=_member_retention(options),
    )
    broker = await open_redis(url, chosen)
    return await _store_over(broker, broker.capabilities, options, _Place(url))


async def _attach(directory: str, options: StoreOptions, kind: str) -> Embedded:
    from tailrace.embedded import EmbeddedOptions, attach

    if "?" in directory:
        raise BrokerUnsuitable(
            "Wrong URL of an embedded broker: it takes no options",
            hint="Write embedded://DIR, with %3F for a ? in the folder's name; settings do that (`tailrace settings`).",
        )
    wanted = EmbeddedOptions(sync_always=True) if options.sync_always else None
    return await attach(Path(unquote(directory)) if directory else None, wanted, kind=kind)


@contextmanager
def _extra(name: str, package: str) -> Iterator[None]:
    """The extra that a missing package belongs to is what the error names."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(f"{name}:// needs the package {package}", hint=f"pip install 'tailrace[{name}]'") from None


def _refuse_total_bytes(limits: Limits, where: str, *, hint: str) -> None:
    if (most := limits.max_total_bytes) is not None:
        raise BrokerUnsuitable(f"TAILRACE_MAX_TOTAL_BYTES={most} cannot be kept on {where}", hint=hint)


def _retention(options: StoreOptions) -> float:
    return options.limits.max_stream_age + options.limits.max_ttl + RETENTION_MARGIN


def _member_retention(options: StoreOptions) -> float:
    return max(LEAST_MEMBER_RETENTION, options.lease_ttl)


class _Place(NamedTuple):
    """A broker for people: what to set for larger messages, and what headers take of one."""

    url: str
    raised_by: str = ""
    headers: int = 0


def _fitting(options: StoreOptions, room: int, place: _Place) -> Limits:
    """The limits over a broker whose records hold ``room`` bytes. Raises `BrokerUnsuitable`."""
    most, where = options.limits.max_chunk_bytes, _without_secrets(place.url)
    if room < LEAST_RECORD_BYTES:
        raise BrokerUnsuitable(
            f"The messages at {where} are too small: a record holds {room} bytes, and must hold {LEAST_RECORD_BYTES}",
            hint=f"Raise {place.raised_by} to {LEAST_RECORD_BYTES + place.headers} or more.",
        )
    if most is None or (most > room and options.fit_chunks):
        return replace(options.limits, max_chunk_bytes=room)
    if most > room:
        larger = f", or raise {place.raised_by} to {most + place.headers} or more" if place.raised_by else ""
        raise BrokerUnsuitable(
            f"TAILRACE_MAX_CHUNK_BYTES={most} cannot be kept at {where}: a record holds {room} bytes",
            hint=f"Set it to {room} or less{larger}.",
        )
    return options.limits


async def _store_over(
    broker: Broker,
    capabilities: Capabilities,
    options: StoreOptions,
    place: _Place,
    also_close: Callable[[], Awaitable[None]] | None = None,
) -> LogStore:
    """The started store over an opened broker, which closes it. Where it does not start, all is closed."""
    from tailrace.members import Membership
    from tailrace.store import LogStore

    async def close() -> None:
        await broker.close()
        if also_close is not None:
            await also_close()

    try:
        limits = _fitting(options, broker.log.max_record_bytes, place)
    except BrokerUnsuitable:
        await close()
        raise
    store = LogStore(
        broker.log,
        Membership(broker.beats, options.lease_ttl),
        broker.runs,
        limits,
        capabilities,
        linger=options.linger,
        request_timeout=options.request_timeout,
        on_close=close,
    )
    try:
        return await store.start()
    except BaseException:
        await store.aclose()
        raise


def _without_secrets(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"


_OPENERS: dict[str, Callable[[str, str, StoreOptions], Awaitable[LogStore]]] = {
    "memory": _memory,
    "embedded": _embedded,
    "embedded+kafka": _embedded_kafka,
    "nats": _nats,
    "tls": _nats,
    "kafka": _kafka,
    "kafka+ssl": _kafka,
    "redis": _redis,
    "rediss": _redis,
    "redis+sentinel": _redis,
    "rediss+sentinel": _redis,
}
