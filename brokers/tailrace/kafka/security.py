"""Credentials and certificates: read, and refused by name, before a connection is tried."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from tailrace.errors import BrokerRefused
from tailrace.kafka.options import KafkaOptions


def client_options(options: KafkaOptions) -> dict[str, Any]:
    """How to connect, as the client library's arguments. Raises `BrokerRefused` for files that cannot be used."""
    context = tls_context(options)
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


def tls_context(options: KafkaOptions) -> ssl.SSLContext | None:
    """The context for TLS, or None where nothing asks for it. Raises `BrokerRefused`."""
    if not (options.tls or options.tls_ca or options.tls_cert):
        return None
    for name in ("tls_ca", "tls_cert", "tls_key"):
        path = getattr(options, name)
        if path is not None and not Path(path).is_file():
            raise BrokerRefused(f"{name} cannot be read: {path}", hint="Mend the path.")
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        context.check_hostname = options.tls_check_hostname
        if options.tls_cert is not None:
            context.load_cert_chain(options.tls_cert, options.tls_key)
    except (ssl.SSLError, OSError) as error:
        raise BrokerRefused(f"The TLS files cannot be used: {error}", hint="Check tls_ca, tls_cert, tls_key.") from None
    return context
