"""The certificates of all brokers: read, and refused by name, before a connection is tried."""

from __future__ import annotations

import ssl
from pathlib import Path

from tailrace.errors import BrokerRefused


def context(
    ca: str | None, cert: str | None, key: str | None, *, check_hostname: bool = True, wanted: bool = False
) -> ssl.SSLContext | None:
    """The context for TLS, or None where it is neither ``wanted`` nor a file is given. Raises `BrokerRefused` for files
    that cannot be used."""
    for name, path in (("tls_ca", ca), ("tls_cert", cert), ("tls_key", key)):
        if path is not None:
            read(name, path)
    if key is not None and cert is None:
        raise BrokerRefused("tls_key is given without tls_cert", hint="Give the certificate that it is the key of.")
    if not (wanted or ca or cert):
        return None
    try:
        made = ssl.create_default_context(cafile=ca)
        made.check_hostname = check_hostname
        if cert is not None:
            made.load_cert_chain(cert, key)
    except (ssl.SSLError, OSError) as error:
        raise BrokerRefused(f"The TLS files cannot be used: {error}", hint="Check tls_ca, tls_cert, tls_key.") from None
    return made


def read(name: str, path: str) -> bytes:
    """The content of the file that the option ``name`` gives. Raises `BrokerRefused`."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BrokerRefused(f"{name} cannot be read: {path} ({error.strerror})", hint="Mend the path.") from None
