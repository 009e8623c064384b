"""Credentials and certificates: read, and refused by name, before a connection is tried."""

from __future__ import annotations

import ssl
from pathlib import Path

from tailrace.errors import BrokerRefused
from tailrace.jetstream.options import JetStreamOptions


def check_files(options: JetStreamOptions) -> None:
    """Raise `BrokerRefused` for a file that is missing or is not what it should be: the client library would retry
    for ever, or loop."""
    for name in ("creds_file", "tls_ca", "tls_cert", "tls_key"):
        path = getattr(options, name)
        if path is None:
            continue
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise BrokerRefused(f"{name} cannot be read: {path} ({error.strerror})", hint="Mend the path.") from None
        if name == "creds_file" and not (b"BEGIN NATS USER JWT" in text and b"BEGIN USER NKEY SEED" in text):
            raise BrokerRefused(f"{path} is not a credentials file", hint="Make one with `nsc generate creds`.")
    if options.nkey_seed is not None and not options.nkey_seed.strip().startswith("SU"):
        raise BrokerRefused("nkey_seed is not a user's seed", hint="A user's seed begins with SU.")


def tls_context(options: JetStreamOptions, wanted: bool) -> ssl.SSLContext | None:
    """The context for TLS, or None where nothing asks for more than the platform's. Raises `BrokerRefused`."""
    if not (wanted or options.tls_ca or options.tls_cert or options.tls_first):
        return None
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_cert is not None:
            context.load_cert_chain(options.tls_cert, options.tls_key)
    except (ssl.SSLError, OSError) as error:
        raise BrokerRefused(f"The TLS files cannot be used: {error}", hint="Check tls_ca, tls_cert, tls_key.") from None
    return context
