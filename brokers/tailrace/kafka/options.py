"""What a Kafka deployment can be told. The caller computes `retention`; nothing here reads the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PREFIX = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """Settings of the adapter. Durations are seconds, sizes bytes; every process of a deployment uses the same.

    partitions: of the topics of records and of segments; fixed once the topics exist.
    claims_partitions: of the topic of claims; fixed as well.
    prefix: first part of every topic's name.
    replicas, min_insync_replicas: copies of each topic, and how many of them an acknowledged record is on.
    retention: how long the broker keeps records; longer than a stream's longest life plus the longest time to live.
    max_message_bytes: the largest batch that the topics take, headers included.
    member_retention: how long the last heartbeat of a dead member is kept, at least.
    mechanism: of SASL (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512), used where there is a user.
    connect_timeout: how long the first connect may take in all; later ones are tried for ever.
    request_timeout: how long an answer is awaited before its request counts as unanswered.
    fetch_wait: how long the broker may hold a fetch that has nothing to give.
    """

    partitions: int = 16
    claims_partitions: int = 4
    prefix: str = "tailrace"
    replicas: int = 1
    min_insync_replicas: int = 1
    retention: float = 49 * 3600.0
    max_message_bytes: int = 1024 * 1024
    member_retention: float = 120.0
    user: str | None = None
    password: str | None = None
    mechanism: str = "PLAIN"
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_check_hostname: bool = True
    connect_timeout: float = 4.0
    request_timeout: float = 5.0
    fetch_wait: float = 5.0
    name: str = "tailrace"

    def __post_init__(self) -> None:
        if _PREFIX.fullmatch(self.prefix) is None:
            raise ValueError(f"prefix: 1 to 32 of a-z 0-9 _ -, not {self.prefix!r}")
        if not 1 <= self.partitions <= 1024:
            raise ValueError(f"partitions: 1 to 1024, not {self.partitions}")
        if not 1 <= self.claims_partitions <= 256:
            raise ValueError(f"claims_partitions: 1 to 256, not {self.claims_partitions}")
        if not 1 <= self.min_insync_replicas <= self.replicas:
            raise ValueError(f"min_insync_replicas: 1 to replicas ({self.replicas}), not {self.min_insync_replicas}")
        if self.mechanism not in MECHANISMS:
            raise ValueError(f"mechanism: one of {', '.join(MECHANISMS)}, not {self.mechanism!r}")
        if self.max_message_bytes < 128 * 1024:
            raise ValueError(f"max_message_bytes: 131072 or more, not {self.max_message_bytes}")

    def __repr__(self) -> str:  # secrets stay out of logs and tracebacks
        return f"KafkaOptions(prefix={self.prefix!r}, partitions={self.partitions}, replicas={self.replicas})"
