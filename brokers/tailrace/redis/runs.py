"""`RunQueue` on Redis: one stream a handler with a consumer group, and the command itself beside its stream.

Theory. A command is accepted when the hash of its stream id has none of its handler and now holds it; an entry in the
handler's stream says that there is work. So a second submit finds the first, and an entry without its command is an
acked one's. Entries are taken through the group; whoever falls silent for ``ack_wait`` loses them to another's claim.

Rules.

- Only the consumer in whose hands an entry is can settle it: a worker that lost a command changes nothing.
- A command that is put back gets a new entry at the end, with the next attempt's number. The delay is its worker's own
  timer: should the worker die meanwhile, silence brings the command back.
- A submit whose answer is lost is sent again: it is its own first, by the command's id.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tailrace.command_wire import decode_command, encode_command
from tailrace.contracts import Command
from tailrace.errors import BrokerUnavailable, RunTooLarge
from tailrace.redis.connection import Connection, Unanswered
from tailrace.redis.listening import Listener
from tailrace.redis.names import Names
from tailrace.redis.options import RedisOptions
from tailrace.redis.scripts import Script
from tailrace.redis.wire import Entry

GROUP = "workers"
MAX_INPUT = 8 * 1024 * 1024
_ATTEMPTS = 3
_DEAD = 10_000  # dead letters that are kept, about

_SUBMIT = Script("""
local facts = redis.call('HGET', KEYS[1], 'm:' .. ARGV[1])
if facts then return {facts, redis.call('HGET', KEYS[1], 'i:' .. ARGV[1])} end
redis.call('HSET', KEYS[1], 'm:' .. ARGV[1], ARGV[3], 'i:' .. ARGV[1], ARGV[4], 'c:' .. ARGV[1], ARGV[5])
local clock = redis.call('TIME')
local now = string.format('%.0f', tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000))
redis.call('XADD', KEYS[2], '*', 'id', ARGV[2], 'command', ARGV[5], 'n', '1', 'at', now)
return {}
""")

# KEYS: 1 the command's hash, 2 the handler's stream, 3 the dead letters. ARGV: 1 group, 2 consumer, 3 entry, 4 verb,
# 5 handler, 6 command id, then what the verb needs
_SETTLE = Script("""
local held = redis.call('XPENDING', KEYS[2], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #held == 0 then return 0 end
if ARGV[4] == 'working' then
  redis.call('XCLAIM', KEYS[2], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
  return 1
end
redis.call('XACK', KEYS[2], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[2], ARGV[3])
if ARGV[4] == 'retry' then
  redis.call('XADD', KEYS[2], '*', 'id', ARGV[7], 'command', ARGV[6], 'n', ARGV[8], 'at', ARGV[9])
  return 1
end
if ARGV[4] == 'bury' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], '*', 'id', ARGV[7], 'handler', ARGV[5], 'reason', ARGV[9],
    'facts', redis.call('HGET', KEYS[1], 'm:' .. ARGV[5]) or '',
    'input', redis.call('HGET', KEYS[1], 'i:' .. ARGV[5]) or '')
end
if redis.call('HGET', KEYS[1], 'c:' .. ARGV[5]) == ARGV[6] then
  redis.call('HDEL', KEYS[1], 'm:' .. ARGV[5], 'i:' .. ARGV[5], 'c:' .. ARGV[5])
end
return 1
""")

# In one step: a consumer takes what it still holds with it, and what its last read brings comes at any moment.
_PART = Script("""
local held = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100, ARGV[2])
if #held == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end
return held
""")


@dataclass(frozen=True, slots=True)
class Taken:
    """An entry in a consumer's hands: ``attempt`` counts from 1, ``submitted_ms`` is when the command was accepted."""

    handler: str
    entry: str
    stream_id: str
    command_id: str
    attempt: int
    submitted_ms: int
    facts: bytes
    input: bytes

    def command(self) -> Command:
        """Raises `RecordError`."""
        return _read(self.facts, self.input)


def _read(facts: bytes, data: bytes) -> Command:
    try:
        headers = json.loads(facts)
    except ValueError:
        headers = None
    return decode_command(headers if isinstance(headers, dict) else None, data)


class RedisRunQueue:
    """Made by `open_redis`; see `tailrace.contracts.RunQueue` for what each call promises."""

    kind = "redis"

    def __init__(self, connection: Connection, names: Names, options: RedisOptions, listener: Listener) -> None:
        self.connection = connection
        self._listener = listener
        self.names = names
        self.ack_wait = options.ack_wait

    async def submit(self, command: Command) -> Command:
        command = replace(command, id=command.id or secrets.token_hex(12))
        headers, data = encode_command(command)
        facts = json.dumps(headers, separators=(",", ":"))
        if (size := len(data)) > MAX_INPUT:
            raise RunTooLarge(f"The run of {command.stream_id} has {size} bytes of input; the most is {MAX_INPUT}")
        keys = (self.names.run(command.stream_id), self.names.runs(command.handler))
        for _ in range(_ATTEMPTS):
            try:
                found = await self.connection.run(
                    _SUBMIT, keys, command.handler, command.stream_id, facts, data, command.id
                )
            except Unanswered:
                continue
            return _read(*found) if found else command
        raise BrokerUnavailable(f"Redis at {self.connection} did not confirm the run of {command.stream_id}")

    async def find(self, stream_id: str) -> Command | None:
        flat = await self.ask("HGETALL", self.names.run(stream_id))
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        for name, facts in fields.items():
            if name.startswith(b"m:"):
                return _read(facts, fields.get(b"i:" + name[2:], b""))
        return None

    async def cancel(self, member_id: str, stream_id: str) -> None:
        key = self.names.cancels(member_id)
        await self.ask("XADD", key, "MAXLEN", "~", 1000, "*", "id", stream_id)
        await self.ask("PEXPIRE", key, 3600_000)

    async def ask(self, *arguments: Any) -> Any:
        """The answer to a plain command. Raises `BrokerError`."""
        try:
            return await self.connection.call(*arguments)
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None

    # --- for workers

    def on_cancel(self, member_id: str, stop: Callable[[str], object]) -> Callable[[], None]:
        """Call ``stop`` with the stream id of each cancel for this member; calling what this returns ends that."""

        def take(entries: list[Entry]) -> None:
            for _, fields in entries:
                stop(fields.get(b"id", b"").decode("utf-8", "replace"))

        channel = self._listener.add(self.names.cancels(member_id), 0, take, lambda: None)
        return lambda: self._listener.remove(channel)

    async def part(self, key: str, consumer: str) -> Any:
        """Forget a consumer of a handler's stream that holds nothing; else what it holds, as ``XPENDING`` tells it."""
        try:
            return await self.connection.run(_PART, (key,), GROUP, consumer)
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None

    async def settle(self, taken: Taken, consumer: str, verb: str, *arguments: Any) -> bool:
        """Do ``verb`` (ack, working, retry, bury) with an entry; False where it is in other hands now."""
        keys = (self.names.run(taken.stream_id), self.names.runs(taken.handler), self.names.dead)
        given = (GROUP, consumer, taken.entry, verb, taken.handler, taken.command_id, *arguments)
        try:
            return bool(await self.connection.run(_SETTLE, keys, *given))
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None

    async def ack(self, taken: Taken, consumer: str) -> None:
        await self.settle(taken, consumer, "ack")

    async def working(self, taken: Taken, consumer: str) -> None:
        await self.settle(taken, consumer, "working")

    async def retry(self, taken: Taken, consumer: str) -> None:
        await self.settle(taken, consumer, "retry", taken.stream_id, taken.attempt + 1, taken.submitted_ms)

    async def bury(self, taken: Taken, consumer: str, reason: str) -> None:
        await self.settle(taken, consumer, "bury", taken.stream_id, _DEAD, reason[:1000])
