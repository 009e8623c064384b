"""Credentials and certificates: read, and refused by name, before a connection is tried."""

from __future__ import annotations

from typing import Any

from tailrace import _tls
from tailrace.kafka.options import KafkaOptions


def client_options(options: KafkaOptions) -> dict[str, Any]:
    """How to connect, as the client library's arguments. Raises `BrokerRefused` for files that cannot be used."""
    context = _tls.context(
        options.tls_ca,
        options.tls_cert,
        options.tls_key,
        check_hostname=options.tls_check_hostname,
        wanted=options.tls,
    )
    sasl = options.user is not None
    protocol = ("SASL_" if sasl else "") + ("SSL" if context else ("PLAINTEXT"))
    chosen: dict[str, Any] = {"security_protocol": protocol, "ssl_context": context}
    if sasl:
        chosen |= {
            "sasl_mechanism": options.mechanism,
            "sasl_plain_username": options.user,
            "sasl_plain_password": options.password or "",
        }
    return chosen
