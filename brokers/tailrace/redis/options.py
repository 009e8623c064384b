"""What a Redis deployment can be told. The caller computes the durations; nothing here reads the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass

LAYOUTS = ("0.3.44", "0.3.15")
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Settings of the adapter. Durations are seconds; every process of a deployment uses the same.

    prefix: what every key begins with; the default is that of npm ``assistant-stream``, whose streams are shared then.
    layout: the release of ``assistant-stream`` whose keys new streams get; both are read.
    retention: how long what is known of a stream that is gone is kept, so that generations count on.
    member_retention: how long heartbeats are kept.
    ack_wait: how long a taken command may stay silent before it is delivered elsewhere; above the lease's time.
    connect_timeout: how long a connect may take. request_timeout: how long an answer is awaited.
    """

    prefix: str = "aui:resumable"
    layout: str = "0.3.44"
    user: str | None = None
    password: str | None = None
    sentinel_user: str | None = None
    sentinel_password: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    retention: float = 49 * 3600.0
    member_retention: float = 120.0
    ack_wait: float = 30.0
    connect_timeout: float = 4.0
    request_timeout: float = 5.0

    def __post_init__(self) -> None:
        if _PREFIX.fullmatch(self.prefix) is None:
            raise ValueError(f"prefix: 1 to 64 of A-Z a-z 0-9 _ . : -, not {self.prefix!r}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout: {' or '.join(LAYOUTS)}, not {self.layout!r}")

    def __repr__(self) -> str:  # secrets stay out of logs and tracebacks
        return f"RedisOptions(prefix={self.prefix!r}, layout={self.layout!r})"
