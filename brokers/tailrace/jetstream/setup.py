"""The streams that a deployment needs: made with explicit settings, or checked against them.

Theory. Creating a stream that is there with the same settings succeeds, so processes that start at once need no lock.
One that differs is never changed: it is refused, naming the stream, the setting, and how to mend it. Settings that may
be more generous than asked for (retention, replicas) are only compared that way. The number of shards is written into
each shard's metadata, since processes that disagree about it would elect two producers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from tailrace.errors import BrokerUnavailable, BrokerUnsuitable
from tailrace.jetstream import refusals
from tailrace.jetstream.connection import Connection, Unanswered
from tailrace.jetstream.names import Names
from tailrace.jetstream.options import JetStreamOptions
from tailrace.jetstream.wire import header_block
from tailrace.model import Incarnation

Settings = dict[str, Any]
NEVER = 1 << 53  # a sequence that no subject comes to
SHARDS, FORMAT = "tailrace-shards", "tailrace-format"
ONE_TRY, PAUSE, PATIENCE = 1.5, 0.1, 8.0  # seconds: of one call, between two, of all
NO_STORE = 2.0  # seconds: for how long a server may fail to make a stream's store
_NANO = 1_000_000_000
_AT_LEAST = frozenset({"max_age", "num_replicas", "duplicate_window"})
_TIMES = frozenset({"max_age", "duplicate_window"})
_FLAGS = {
    "max_age": "max-age",
    "duplicate_window": "dupe-window",
    "num_replicas": "replicas",
    "max_bytes": "max-bytes",
}
_FIXED = frozenset({"storage", "retention", "sealed", FORMAT})  # what `nats stream edit` cannot mend
_UNSET: tuple[Any, ...] = (None, 0, False, "", [], {})


def wanted(names: Names, options: JetStreamOptions) -> list[Settings]:
    """The settings of every stream."""
    prefix = names.prefix
    per_shard = -1 if options.max_bytes is None else max(options.max_bytes // names.shards, 1)
    shards = [
        _stream(names.shard(shard), names.records(shard), options)
        | {
            "max_bytes": per_shard,
            "republish": {"src": names.records(shard), "dest": f"{prefix}.l.{shard:02}.{{{{wildcard(1)}}}}"},
            "metadata": {FORMAT: "1", SHARDS: str(names.shards)},
        }
        for shard in range(names.shards)
    ]
    members = {
        "max_msgs_per_subject": 1,
        "discard": "old",
        "max_age": int(options.member_retention * _NANO),
        "duplicate_window": _window(options.member_retention),
        "republish": {"src": f"{prefix}.m.*", "dest": f"{prefix}.ml.{{{{wildcard(1)}}}}"},
    }
    return [
        *shards,
        _stream(names.segments, f"{prefix}.g.>", options),
        _stream(names.members, f"{prefix}.m.*", options) | members,
        _stream(names.commands, f"{prefix}.r.*.*", options)
        | {"retention": "workqueue", "max_age": 0, "duplicate_window": 120 * _NANO},
        _stream(names.dead, f"{prefix}.dead.>", options),
    ]


def _stream(name: str, subject: str, options: JetStreamOptions) -> Settings:
    where = {"cluster": options.placement_cluster, "tags": list(options.placement_tags)}
    wished = {key: value for key, value in where.items() if value}
    placement = {"placement": wished} if wished else {}
    return {
        "name": name,
        "subjects": [subject],
        "retention": "limits",
        "storage": "file",
        "num_replicas": options.replicas,
        "max_age": int(options.retention * _NANO),
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_msgs_per_subject": -1,
        "max_consumers": -1,
        "discard": "new",  # full means refused: never an acknowledged record for a new one
        "duplicate_window": _window(options.retention),
        "allow_direct": True,
        "allow_rollup_hdrs": False,
        "no_ack": False,
        "sealed": False,
        "metadata": {FORMAT: "1"},
    } | placement


def _window(retention: float) -> int:
    return int(min(retention, 120) * _NANO)  # the server takes none that is longer than the retention


async def check(connection: Connection, names: Names, options: JetStreamOptions) -> None:
    """Make or check every stream. Idempotent, also from several processes at once. Raises `BrokerError`."""
    await _enabled(connection)
    first, *others = wanted(names, options)
    await _ensure(connection, first)  # alone: a process that disagrees about the shards makes no stray streams
    outcomes = await asyncio.gather(*(_ensure(connection, settings) for settings in others), return_exceptions=True)
    for outcome in outcomes:  # all have ended: nothing goes on behind the error
        if isinstance(outcome, BaseException):
            raise outcome
    outcomes = await asyncio.gather(*(_try(connection, name) for name in _written(names)), return_exceptions=True)
    for outcome in outcomes:  # as above
        if isinstance(outcome, BaseException):
            raise outcome


def _written(names: Names) -> tuple[str, ...]:
    """A subject of each kind that is written to."""
    return (
        names.place("x").subject,
        names.segment("x", Incarnation(1, 0), 0),
        names.member("x"),
        names.command("x", "x"),
        names.dead_letter("x", "x"),
    )


async def _try(connection: Connection, subject: str) -> None:
    """What this user may not write it is told now, and not by its first stream. Nothing is stored: no subject ever has
    as many messages. Raises `BrokerRefused`."""
    for _ in range(2):  # a refusal that comes late is no answer to the first
        with suppress(Unanswered, BrokerUnavailable):
            await connection.request(subject.encode(), block=header_block({}, NEVER), timeout=ONE_TRY)
            return


async def _enabled(connection: Connection) -> None:
    if connection.jetstream:
        await asked(connection, "INFO")
        return
    try:
        await connection.api("INFO")
    except BrokerUnavailable as error:
        raise BrokerUnsuitable(
            f"JetStream is not enabled at {connection}",
            hint="Start nats-server with -js, or with a jetstream block in its configuration.",
        ) from error


async def _ensure(connection: Connection, settings: Settings) -> None:
    name = settings["name"]
    try:
        answer = await asked(connection, f"STREAM.INFO.{name}")
    except refusals.Refusal as error:
        if error.number != refusals.NO_STREAM:
            raise
        try:
            answer = await _made(connection, settings)
        except refusals.Refusal as taken:
            if taken.number != refusals.NAME_TAKEN:
                raise
            answer = await asked(connection, f"STREAM.INFO.{name}")
    compare(settings, answer["config"], str(connection))


async def _made(connection: Connection, settings: Settings) -> dict[str, Any]:
    """The answer to making a stream. Behind the answer to the deletion of an account's last stream, a server removes
    the account's directory, and maybe from under the stream that is being made: that is worth another try."""
    until = None
    while True:
        try:
            return await asked(connection, f"STREAM.CREATE.{settings['name']}", settings)
        except refusals.Refusal as error:
            now = asyncio.get_running_loop().time()
            until = until or now + NO_STORE
            if error.number != refusals.NOT_MADE or now >= until:
                raise
        await asyncio.sleep(PAUSE)


async def asked(connection: Connection, call: str, body: Settings | None = None) -> dict[str, Any]:
    """The answer to a call that may be repeated. On a cluster, a stream that is being made, or whose leader died, has
    no leader for a moment, and then nobody answers for it."""
    until = asyncio.get_running_loop().time() + PATIENCE
    while True:
        try:
            return await connection.api(call, body, timeout=ONE_TRY)
        except BrokerUnavailable:
            if asyncio.get_running_loop().time() >= until:
                raise
        await asyncio.sleep(PAUSE)


def compare(settings: Settings, found: Mapping[str, Any], where: str = "the broker") -> None:
    """Raise `BrokerUnsuitable` for the first setting of an existing stream that does not do."""
    name = settings["name"]
    for setting, is_now, must_be in _differences(settings, found):
        mend = "Delete the stream" if setting in _FIXED else f"Run `nats stream edit {name}{_flag(setting, settings)}`"
        if setting == SHARDS and is_now is not None:
            mend = f"Set the number of shards to {is_now}"
        raise BrokerUnsuitable(
            f"Stream {name} at {where}: {setting} is {_shown(setting, is_now)}, and must be {must_be}",
            hint=f"{mend}, or give Tailrace another prefix.",
        )


def _flag(setting: str, settings: Settings) -> str:
    flag = _FLAGS.get(setting)
    return f" --{flag}={_shown(setting, settings[setting]).replace(' ', '')}" if flag else ""


def _shown(setting: str, value: Any) -> str:
    """The server counts time in nanoseconds; people and the `nats` command do not."""
    return f"{(value or 0) // _NANO} s" if setting in _TIMES else repr(value)


def _differences(settings: Settings, found: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    for setting, value in settings.items():
        is_now = found.get(setting)
        if setting == "max_bytes" and value == -1:  # a bound that somebody set is theirs: full means refused
            continue
        if setting == "metadata":
            held = is_now or {}
            for key, text in value.items():
                if held.get(key) != text:
                    yield key, held.get(key), repr(text)
        elif setting in _AT_LEAST:
            unlimited = setting == "max_age" and not is_now
            if not unlimited and (value == 0 or (is_now or 0) < value):
                yield setting, is_now, f"{_shown(setting, value)} or more"
        elif is_now != value and not (is_now in _UNSET and value in _UNSET):
            yield setting, is_now, repr(value)
