"""What an embedded server of each kind needs; the sharing, the supervision and the locks are the same for all."""

from __future__ import annotations

from typing import Protocol

from tailrace._server_directory import ServerDirectory, ServerRecord


class ServerKind(Protocol):
    """One kind of server. Its name is its URLs' scheme."""

    @property
    def steady_after(self) -> float:
        """Seconds after which a server that ends did not fail at its start."""

    def check(self) -> None:
        """Return if this machine can run one. Raises BrokerError with what is missing."""

    def prepare(self, home: ServerDirectory, record: ServerRecord) -> list[str]:
        """Write what the server reads, and give the command that runs it in ``home``. Raises BrokerError, OSError."""

    async def answers(self, record: ServerRecord) -> bool:
        """Whether the recorded server, and no other, takes clients."""


def kind_named(name: str) -> ServerKind:
    """``nats`` or ``kafka``."""
    if name == "kafka":
        from tailrace.kafka_local.kind import KafkaKind

        return KafkaKind()
    from tailrace._nats_kind import NatsKind

    return NatsKind()
