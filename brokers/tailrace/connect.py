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

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tailrace.errors import BrokerUnsuitable, MissingExtra, UnknownScheme
from tailrace.model import Limits

if TYPE_CHECKING:
    from tailrace.jetstream.options import JetStreamOptions
    from tailrace.kafka.options import KafkaOptions
    from tailrace.redis.options import RedisOptions
    from tailrace.store import LogStore

RETENTION_MARGIN = 3600.0  # seconds that the broker keeps records beyond what a stream may need them for

LEAST_MEMBER_RETENTION = 120.0  # seconds; a member beats five times a lease, and its last beat must still be there


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a store can be told. ``lease_ttl``: seconds of silence after which a process counts as lost; ``linger``:
    seconds that a tail outlives its last reader; ``request_timeout``: seconds that a new request waits for the broker;
    ``jetstream``, ``kafka`` and ``redis``: how each is set up and reached (their times are computed here);
    ``sync_always``: the embedded server writes to the disk before every acknowledgement."""

    limits: Limits = field(default_factory=Limits)
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
    TLS), `BrokerUnsuitable` (too old, no JetStream, differing settings).
    """
    scheme, separator, rest = url.partition("://")
    opener = _OPENERS.get(scheme.lower()) if separator else None
    if opener is None:
        known = ", ".join(f"{name}://" for name in _OPENERS)
        raise UnknownScheme(f"No store is known for {_without_secrets(url)!r}", hint=f"Use one of {known}")
    return await opener(url, rest, options or StoreOptions())


async def _memory(url: str, rest: str, options: StoreOptions) -> LogStore:
    from tailrace.memory import MemoryStore

    store = MemoryStore(options.limits, lease_ttl=options.lease_ttl, linger=options.linger, gc_interval=60.0)
    return await store.start()


async def _embedded(url: str, rest: str, options: StoreOptions) -> LogStore:
    from tailrace.embedded import EmbeddedOptions, attach

    directory = Path(unquote(rest)) if rest else None
    embedded = await attach(directory, EmbeddedOptions(sync_always=True) if options.sync_always else None)
    try:
        return await _open_jetstream(embedded.url, options, lambda: embedded.url, embedded.close)
    except BaseException:
        await embedded.close()
        raise


async def _nats(url: str, rest: str, options: StoreOptions) -> LogStore:
    return await _open_jetstream(url, options, None, None)


async def _open_jetstream(
    url: str,
    options: StoreOptions,
    url_source: Callable[[], str] | None,
    also_close: Callable[[], Awaitable[None]] | None,
) -> LogStore:
    from tailrace.jetstream import CAPABILITIES, open_jetstream
    from tailrace.jetstream.options import JetStreamOptions
    from tailrace.members import Membership
    from tailrace.store import LogStore

    limits = options.limits
    chosen = replace(
        options.jetstream or JetStreamOptions(),
        retention=limits.max_stream_age + limits.max_ttl + RETENTION_MARGIN,
        ack_wait=3 * options.lease_ttl,
        member_retention=max(LEAST_MEMBER_RETENTION, options.lease_ttl),
        max_bytes=limits.max_total_bytes,
    )
    broker = await open_jetstream(url, options=chosen, url_source=url_source)

    async def close() -> None:
        await broker.close()
        if also_close is not None:
            await also_close()

    store = LogStore(
        broker.log,
        Membership(broker.beats, options.lease_ttl),
        broker.runs,
        limits,
        CAPABILITIES,
        linger=options.linger,
        request_timeout=options.request_timeout,
        on_close=close,
    )
    try:
        return await store.start()
    except BaseException:
        await store.aclose()
        raise


async def _kafka(url: str, rest: str, options: StoreOptions) -> LogStore:
    return await _open_kafka(url, options, None)


async def _embedded_kafka(url: str, rest: str, options: StoreOptions) -> LogStore:
    from tailrace.embedded import EmbeddedOptions, attach

    directory = Path(unquote(rest)) if rest else None
    wanted = EmbeddedOptions(sync_always=True) if options.sync_always else None
    embedded = await attach(directory, wanted, kind="kafka")
    try:
        return await _open_kafka(embedded.url, options, embedded.close)
    except BaseException:
        await embedded.close()
        raise


async def _open_kafka(url: str, options: StoreOptions, also_close: Callable[[], Awaitable[None]] | None) -> LogStore:
    try:
        from tailrace.kafka.broker import open_kafka
    except ModuleNotFoundError as error:
        if error.name != "aiokafka":
            raise
        raise MissingExtra("kafka:// needs the package aiokafka", hint="pip install 'tailrace[kafka]'") from None
    from tailrace.kafka import CAPABILITIES, KafkaOptions
    from tailrace.members import Membership
    from tailrace.store import LogStore

    limits = options.limits
    if limits.max_total_bytes is not None:
        raise BrokerUnsuitable(
            f"TAILRACE_MAX_TOTAL_BYTES={limits.max_total_bytes} cannot be kept on Kafka, which never refuses for size",
            hint="Unset it and watch the brokers' disks, or use another broker.",
        )
    chosen = replace(
        options.kafka or KafkaOptions(),
        retention=limits.max_stream_age + limits.max_ttl + RETENTION_MARGIN,
        member_retention=max(LEAST_MEMBER_RETENTION, options.lease_ttl),
    )
    broker = await open_kafka(url, options=chosen)

    async def close() -> None:
        await broker.close()
        if also_close is not None:
            await also_close()

    store = LogStore(
        broker.log,
        Membership(broker.beats, options.lease_ttl),
        broker.runs,
        limits,
        CAPABILITIES,
        linger=options.linger,
        request_timeout=options.request_timeout,
        on_close=close,
    )
    try:
        return await store.start()
    except BaseException:
        await store.aclose()
        raise


async def _redis(url: str, rest: str, options: StoreOptions) -> LogStore:
    try:
        from tailrace.redis.broker import open_redis
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise MissingExtra("redis:// needs the package redis", hint="pip install 'tailrace[redis]'") from None
    from tailrace.members import Membership
    from tailrace.redis import RedisOptions
    from tailrace.store import LogStore

    limits = options.limits
    if limits.max_total_bytes is not None:
        raise BrokerUnsuitable(
            f"TAILRACE_MAX_TOTAL_BYTES={limits.max_total_bytes} cannot be kept on Redis, which has a limit of its own",
            hint="Unset it, and set maxmemory on the server.",
        )
    chosen = replace(
        options.redis or RedisOptions(),
        retention=limits.max_stream_age + limits.max_ttl + RETENTION_MARGIN,
        ack_wait=3 * options.lease_ttl,
        member_retention=max(LEAST_MEMBER_RETENTION, options.lease_ttl),
    )
    broker = await open_redis(url, chosen)
    store = LogStore(
        broker.log,
        Membership(broker.beats, options.lease_ttl),
        broker.runs,
        limits,
        broker.capabilities,
        linger=options.linger,
        request_timeout=options.request_timeout,
        on_close=broker.close,
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
