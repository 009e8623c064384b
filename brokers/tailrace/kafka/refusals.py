"""What brokers and the client library report, as errors of ours: each names what, where and how to mend it. Pure."""

from __future__ import annotations

import ssl

from aiokafka import errors

from tailrace.errors import BrokerError, BrokerFailed, BrokerRefused, BrokerUnavailable, BrokerUnsuitable

OFFSET_OUT_OF_RANGE = 1
UNKNOWN = -1  # some fault of the broker's; a batch whose version is damaged is one
DAMAGED = frozenset({2, UNKNOWN})
# the partition is led by another node, or by nobody yet: ask again, elsewhere
MOVED = frozenset({3, 5, 6, 9, 13, 56, 74, 75, 78})
TOO_FEW_IN_SYNC = 19  # replicas: refused before it was written
TOO_LARGE = frozenset({10, 18})
_DENIED = frozenset({29, 30, 31, 53, 65, 66})
_LOGIN = (
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.AuthenticationFailedError,
    errors.AuthenticationMethodNotSupported,
)
_SASL = {  # of these the library gives no words
    errors.UnsupportedSaslMechanismError: "it does not take this mechanism",
    errors.IllegalSaslStateError: "it takes none on this port",
}


GRANT = (
    "Grant the user Create, Describe, DescribeConfigs, Read and Write on Tailrace's topics "
    "(kafka-acls.sh --add --topic PREFIX. --resource-pattern-type prefixed)."
)


class Unanswered(Exception):
    """The request was sent, and no answer came."""


def of(code: int, what: str) -> BrokerError:
    """The error that an answer carries; ``what`` names the call and the broker."""
    kind = errors.for_code(code)
    text = f"{what}: {kind.message or kind.__name__} (error {code})"
    if code in MOVED or code == TOO_FEW_IN_SYNC or getattr(kind, "retriable", False):
        return BrokerUnavailable(text)
    if code in _DENIED:
        return BrokerRefused(text, hint=GRANT)
    if code in TOO_LARGE:
        hint = "Raise the topic's max.message.bytes to what it was when Tailrace started."
        return BrokerFailed(f"{text}: the record is too large", hint=hint)
    return BrokerFailed(text, hint="The broker's log says more.")


def is_final(error: BaseException) -> bool:
    """Whether trying to connect again cannot help."""
    return isinstance(error, (*_LOGIN, ssl.SSLCertVerificationError, errors.IncompatibleBrokerVersion))


def connecting(error: BaseException, where: str) -> BrokerError:
    """Why the first connect failed."""
    words = str(error) or type(error).__name__
    if isinstance(error, _LOGIN):
        words = _SASL.get(type(error), words)
        return BrokerRefused(
            f"{where} refused the login: {words}", hint="Check user, password and mechanism (PLAIN, SCRAM-SHA-256 …)."
        )
    if isinstance(error, errors.IncompatibleBrokerVersion | NotImplementedError):
        return too_old(where)
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return BrokerRefused(
            f"TLS with {where} failed: {words}",
            hint="Check the scheme (kafka+ssl:// is TLS), the port, and tls_ca, tls_cert, tls_key.",
        )
    is_reached = isinstance(error, TimeoutError | ConnectionResetError | BrokenPipeError | ConnectionAbortedError)
    if isinstance(error, OSError) and not is_reached:
        return BrokerUnavailable(f"Cannot reach Kafka at {where}: {words}")
    if isinstance(error, errors.KafkaConnectionError):
        words = "it closed the connection"
    unavailable = BrokerUnavailable(f"{where} does not answer as Kafka: {words}")
    unavailable.hint = (
        "Check the port, whether it wants TLS (kafka+ssl://) or none (kafka://), and a login (user:password@)."
    )
    return unavailable


def too_old(where: str) -> BrokerUnsuitable:
    return BrokerUnsuitable(f"The Kafka broker at {where} is too old", hint="Use Apache Kafka 2.4 or newer.")
