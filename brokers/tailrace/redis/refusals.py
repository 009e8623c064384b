"""What servers and the client library report, as errors of ours: each names what, where and how to mend it. Pure."""

from __future__ import annotations

import ssl

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as SocketLost

from tailrace.errors import (
    BrokerError,
    BrokerFailed,
    BrokerRefused,
    BrokerUnavailable,
    BrokerUnsuitable,
    StorageFull,
    TailraceError,
)

_LATER = ("MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "UNBLOCKED", "NOREPLICAS", "BUSY Redis", "FAILOVER")
_GRANT = "Grant the user these commands and keys."
_DENIED = ("no permissions", "can't run this command", "can't access at least one of the keys")
_REFUSED = ("WRONGPASS", "NOAUTH", "NOPERM", "invalid username-password", "Authentication required", "AUTH <password>")


def of(error: RedisError, where: str) -> TailraceError:
    """The error that an answer of the server is."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "OOM command" in text or "used memory >" in text:
        return StorageFull(
            f"Redis at {where} is full: {text}", hint="Raise maxmemory, or wait until streams expire, or delete some."
        )
    if isinstance(error, ReadOnlyError) or "read only replica" in text:
        return BrokerUnavailable(f"Redis at {where} is a read-only replica now")
    if isinstance(error, BusyLoadingError) or any(words in text for words in _LATER):
        return BrokerUnavailable(f"Redis at {where} is not ready: {text}")
    if isinstance(error, NoPermissionError) or any(words in text for words in _DENIED):
        return BrokerRefused(f"Redis at {where} forbids what Tailrace needs: {text}", hint=_GRANT)
    if is_login(error):
        return BrokerRefused(f"Redis at {where} refused the login: {text}")
    if "unknown command" in text:
        return BrokerUnsuitable(
            f"What answers at {where} lacks what Tailrace needs: {text[:200]}",
            hint="Use Redis or Valkey 6.2 or newer, and rename or disable none of its commands.",
        )
    if "MISCONF" in text or "unable to persist" in text:
        return BrokerFailed(f"Redis at {where} cannot write to its disk: {text}", hint="Mend the server's disk.")
    return BrokerFailed(f"Redis at {where} failed: {text}", hint="The server's log says more.")


def is_login(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, AuthenticationError) or any(words in text for words in _REFUSED)


def connecting(error: BaseException, where: str, *, tls: bool = False) -> BrokerError:
    """Why a connection, by ``tls`` or not, could not be made."""
    if isinstance(error, MasterNotFoundError):
        return _no_master(str(error), where)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return BrokerRefused(
                f"TLS with Redis at {where} failed: {cause.reason or cause}",
                hint="Check rediss:// against redis://, and tls_ca, tls_cert and tls_key.",
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, NoPermissionError):
        return BrokerRefused(f"Redis at {where} forbids what Tailrace needs: {error}", hint=_GRANT)
    if isinstance(error, RedisError) and is_login(error):
        return BrokerRefused(f"Redis at {where} refused the login: {error}")
    text = str(error) or type(error).__name__
    if any(words in text for words in ("Protocol Error", "Invalid Database", "DB index", "'SENTINEL'")):
        return BrokerUnsuitable(
            f"What answers at {where} is no Redis (or Sentinel) that can be used: {text[:200]}",
            hint="Check scheme, host, port and database.",
        )
    unavailable = BrokerUnavailable(f"Cannot reach Redis at {where}: {text}")
    if isinstance(error, SocketLost) and "connecting to" not in text:  # somebody was there, and hung up
        wants = "a client's certificate (tls_cert, tls_key)" if tls else "TLS (rediss://)"
        unavailable.hint = f"Check the port, and whether it wants {wants}."
    return unavailable


def _no_master(text: str, where: str) -> BrokerError:
    """``text`` shows the library's objects for the sentinels that failed, each with the name of its error behind it."""
    what, _, said = text.partition(" : ")
    if "Authentication" in said:
        return BrokerRefused(
            f"The sentinels at {where} refused the login", hint="Check sentinel_user and sentinel_password."
        )
    unavailable = BrokerUnavailable(
        f"{what} by the sentinels at {where}" + (": they cannot be reached" if said else "")
    )
    unavailable.hint = "Check the sentinels' hosts and ports, and the name of the service."
    return unavailable
