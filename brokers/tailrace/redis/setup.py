"""What a server must be, looked at once at the start. Warnings go to the log; what breaks a promise is refused."""

from __future__ import annotations

import logging

from tailrace.errors import BrokerRefused, BrokerUnavailable, BrokerUnsuitable
from tailrace.redis.connection import Connection, Unanswered
from tailrace.redis.names import Names
from tailrace.redis.scripts import Script

LEAST = (6, 2)

# Every command that is sent, on a key of its own that is gone at the end; gives the names of those that are forbidden.
# What fails otherwise, for want of memory or replicas, is not this script's matter.
_TRY = Script("""
local key, forbidden = KEYS[1], {}
local function try(...)
  local answer = redis.pcall(...)
  local said = type(answer) == 'table' and answer.err
  if said and (string.find(said, 'no permissions') or string.find(said, "user executing the script can't")
      or string.find(said, 'nknown Redis command')) then
    forbidden[#forbidden + 1] = (...)
  end
end
try('TIME') try('DEL', key)
try('SET', key, '1', 'EX', 60) try('GET', key) try('MGET', key) try('EXPIRE', key, 60) try('PTTL', key) try('DEL', key)
try('HSET', key, 'a', '1') try('HGET', key, 'a') try('HMGET', key, 'a') try('HGETALL', key) try('HDEL', key, 'a')
try('SADD', key, 'a') try('SCARD', key) try('SSCAN', key, '0') try('SREM', key, 'a')
try('XGROUP', 'CREATE', key, 'g', '0', 'MKSTREAM') try('XADD', key, '1-1', 'a', '1')
try('XRANGE', key, '-', '+') try('XREVRANGE', key, '+', '-') try('XREAD', 'STREAMS', key, '0')
try('XREADGROUP', 'GROUP', 'g', 'c', 'STREAMS', key, '>') try('XPENDING', key, 'g')
try('XCLAIM', key, 'g', 'c', 0, '1-1') try('XACK', key, 'g', '1-1') try('XDEL', key, '1-1')
try('EXISTS', key) try('PEXPIRE', key, 60000) try('SCAN', '0', 'COUNT', 1)
redis.pcall('DEL', key)
return forbidden
""")

_log = logging.getLogger(__name__)


async def check(connection: Connection, names: Names) -> bool:
    """Whether the server keeps what it acknowledges through a kill (it has an append-only file). Raises
    `BrokerUnsuitable`, `BrokerRefused`, `BrokerUnavailable`."""
    try:
        facts = _parse(await connection.call("INFO"), str(connection))
    except Unanswered as error:
        raise BrokerUnavailable(str(error)) from None
    check_server(facts, str(connection))
    await _check_permissions(connection, names)
    durable = facts.get("aof_enabled") == "1"
    if not durable:
        _log.warning("no append-only file: Redis at %s loses acknowledged chunks when it is killed", connection)
    return durable


async def _check_permissions(connection: Connection, names: Names) -> None:
    """What a process may not do, it is told now, and not by its first stream."""
    try:
        found = await connection.run(_TRY, (names.trial,))
    except Unanswered as error:
        raise BrokerUnavailable(str(error)) from None
    if found:
        commands = ", ".join(dict.fromkeys(name.decode() for name in found))
        raise BrokerRefused(
            f"Redis at {connection} forbids what Tailrace needs: {commands}",
            hint=f"Grant the user these commands on the keys {names.prefix}:* (ACL SETUSER).",
        )


def check_server(facts: dict[str, str], where: str) -> None:
    """Raise `BrokerUnsuitable` where the INFO of the server at ``where`` says what a promise would break on."""
    name = "Valkey" if facts.get("server_name") == "valkey" else "Redis"
    version = facts.get("valkey_version") or facts.get("redis_version") or "0"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < LEAST:
        least = ".".join(map(str, LEAST))
        raise BrokerUnsuitable(f"{name} at {where} is {version}; {least} or newer is needed", hint="Upgrade it.")
    if facts.get("redis_mode") == "sentinel":
        raise BrokerUnsuitable(
            f"What answers at {where} is a Sentinel", hint="Write redis+sentinel://host:port/service."
        )
    if facts.get("redis_mode") == "cluster" or facts.get("cluster_enabled") == "1":
        raise BrokerUnsuitable(
            f"{name} at {where} is a cluster", hint="Use one server, or several with Sentinel: redis+sentinel://"
        )
    if facts.get("role") == "slave":
        raise BrokerUnsuitable(f"{name} at {where} is a read-only replica", hint="Name the master, or use Sentinel.")
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and facts.get("maxmemory", "0") != "0":
        raise BrokerUnsuitable(
            f"{name} at {where} evicts keys when it is full (maxmemory-policy {policy}): acknowledged chunks too",
            hint="Set maxmemory-policy noeviction.",
        )


def _parse(text: bytes, where: str) -> dict[str, str]:
    if not isinstance(text, bytes):
        raise BrokerUnsuitable(
            f"The answer of {where} to INFO cannot be read", hint="Check host and port: is it a Redis?"
        )
    lines = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, colon, value in lines if colon}
