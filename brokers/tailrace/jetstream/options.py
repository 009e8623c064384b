"""What a JetStream deployment can be told. The caller computes `retention`; nothing here reads the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PREFIX = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class JetStreamOptions:
    """Settings of the adapter. Durations are seconds, sizes bytes; every process of a deployment uses the same.

    shards: streams that the records are spread over; fixed once the streams exist.
    prefix: first token of every subject (lower case); in capitals, the first part of every stream's name.
    replicas: copies of everything; three survive the loss of a node.
    placement_cluster, placement_tags: where the copies are: the cluster's name, and tags that every server must have.
    retention: how long the broker keeps records; longer than a stream's longest life plus the longest time to live.
    max_bytes: a bound on all records together, spread evenly over the shards; None leaves it to the server.
    member_retention: how long the last heartbeat of a dead member is kept.
    ack_wait: how long a taken command may stay silent before it is delivered elsewhere; above the lease's time.
    connect_timeout: how long the first connect may take in all; later ones are tried for ever.
    request_timeout: how long an answer is awaited before its request counts as unanswered.
    """

    shards: int = 32
    prefix: str = "tailrace"
    replicas: int = 1
    placement_cluster: str | None = None
    placement_tags: tuple[str, ...] = ()
    retention: float = 49 * 3600.0
    max_bytes: int | None = None
    member_retention: float = 120.0
    ack_wait: float = 30.0
    user: str | None = None
    password: str | None = None
    token: str | None = None
    creds_file: str | None = None
    nkey_seed: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_hostname: str | None = None
    tls_first: bool = False
    connect_timeout: float = 4.0
    request_timeout: float = 5.0
    name: str = "tailrace"

    def __post_init__(self) -> None:
        if _PREFIX.fullmatch(self.prefix) is None:
            raise ValueError(f"prefix: 1 to 32 of a-z 0-9 _ -, not {self.prefix!r}")
        if not 1 <= self.shards <= 256:
            raise ValueError(f"shards: 1 to 256, not {self.shards}")
        if not 1 <= self.replicas <= 5:
            raise ValueError(f"replicas: 1 to 5, not {self.replicas}")

    def __repr__(self) -> str:  # secrets stay out of logs and tracebacks
        return f"JetStreamOptions(prefix={self.prefix!r}, shards={self.shards}, replicas={self.replicas})"
