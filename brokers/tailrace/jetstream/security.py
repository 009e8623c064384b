"""Credentials and certificates: read, and refused by name, before a connection is tried."""

from __future__ import annotations

import ssl

from tailrace import _tls
from tailrace.errors import BrokerRefused
from tailrace.jetstream.options import JetStreamOptions


def check_keys(options: JetStreamOptions) -> None:
    """Raise `BrokerRefused` for a key or a file of keys that is missing or is not what it should be: the client library
    would retry for ever, or loop."""
    if (path := options.creds_file) is not None:
        text = _tls.read("creds_file", path)
        if not (b"BEGIN NATS USER JWT" in text and b"BEGIN USER NKEY SEED" in text):
            raise BrokerRefused(f"{path} is not a credentials file", hint="Make one with `nsc generate creds`.")
    if options.nkey_seed is not None and not options.nkey_seed.strip().startswith("SU"):
        raise BrokerRefused("nkey_seed is not a user's seed", hint="A user's seed begins with SU.")


def tls_context(options: JetStreamOptions, wanted: bool) -> ssl.SSLContext | None:
    """The context for TLS, or None where nothing asks for more than the platform's. Raises `BrokerRefused`."""
    return _tls.context(options.tls_ca, options.tls_cert, options.tls_key, wanted=wanted or options.tls_first)
