"""What servers and the client library report, as errors of ours: each names what, where and how to mend it. Pure."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from tailrace.errors import (
    BrokerError,
    BrokerFailed,
    BrokerRefused,
    BrokerUnavailable,
    BrokerUnsuitable,
    StorageFull,
    TailraceError,
)

WRONG_LAST = frozenset({10071, 10164})  # the second: another write to the subject is under way
NO_MESSAGE, NO_STREAM, NAME_TAKEN, NOT_DELETED, NOT_MADE = 10037, 10059, 10058, 10057, 10049
_OFF = frozenset({10039, 10076})
_LATER = frozenset({10004, 10008, 10009, 10012})
_BUSY = 429  # too many requests wait at the stream's leader: this one was not stored
_FULL = frozenset({10002, 10023, 10028, 10047, 10077})
_UNSUITABLE = frozenset({10005, 10027, 10036, 10065, 10074})
_AUTH = ("authorization", "authentication", "authenticat", "expired", "revoked", "no credentials", "no tls", "nkey")


class Refusal(BrokerFailed):
    """The server answered with an error of its own; ``number`` is its err_code."""

    def __init__(self, message: str, number: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.number = number


def of(error: Mapping[str, Any], what: str) -> TailraceError:
    """The error that a JetStream answer carries; ``what`` names the call and the server."""
    number, words = int(error.get("err_code", 0)), str(error.get("description", "no description"))
    text = f"{what}: {words} (error {number})"
    if number in _OFF:
        return BrokerUnsuitable(
            f"JetStream is not enabled: {text}", hint="Start nats-server with -js, or enable it for the account."
        )
    if number in _LATER or error.get("code") == _BUSY:
        return BrokerUnavailable(text)
    if number in _UNSUITABLE:
        return BrokerUnsuitable(text, hint="Mend the server's set-up, or choose another prefix or fewer replicas.")
    if number in _FULL or "maximum bytes" in words or "resource" in words:
        return StorageFull(f"The broker is full: {text}")
    return Refusal(text, number, "The server's log says more.")


def is_final(error: BaseException | None) -> bool:
    """Whether trying again cannot help: the server refused us, or we the server."""
    text = str(error).lower()
    return isinstance(error, ssl.SSLError) or ("timeout" not in text and any(words in text for words in _AUTH))


def connecting(error: BaseException | None, where: str, words: str) -> BrokerError:
    """Why the first connect failed."""
    if isinstance(error, ssl.SSLError):
        return BrokerRefused(
            f"TLS with {where} failed: {words}", hint="Check tls_ca, tls_cert, tls_key and tls_hostname."
        )
    if is_final(error):
        return BrokerRefused(f"{where} refused the connection: {words}")
    unavailable = BrokerUnavailable(f"Cannot reach NATS at {where}: {words}")
    if not isinstance(error, OSError) or isinstance(error, TimeoutError):  # somebody is there
        unavailable.hint = "Check that this is the port of a NATS server, and whether TLS comes first (tls_first)."
    return unavailable


def denied(words: str, where: str) -> BrokerRefused:
    """The server forbids a subject."""
    return BrokerRefused(f"{where} forbids what Tailrace needs: {words}", hint="Grant the user this subject.")
