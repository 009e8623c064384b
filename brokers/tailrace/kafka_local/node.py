"""One Kafka node, broker and controller in one process: its files, its command, its readiness.

Theory. A node lives in a folder: ``server.properties`` is written anew at each start (the ports may differ),
``data/`` is formatted once and then Kafka's own. Paths in the properties are relative and the process runs in the
folder, so nothing needs quoting. The controllers are named in the properties and not kept in ``data/``, which lets a
node come back on another port.

The settings are for one machine and few clients: small heap, serial collector, few threads, and short sessions, since
a killed broker may come back only when its old session has ended (3 s instead of 12).
"""

from __future__ import annotations

import base64
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tailrace.kafka_local import metadata
from tailrace.kafka_local.errors import LocalKafkaError, reason
from tailrace.kafka_local.jars import classpath
from tailrace.kafka_local.java import find_java

HOST = "127.0.0.1"
_JVM = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")
_LOG = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")
_FORMAT_TIMEOUT = 60.0

_COMMON = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "log.dirs": "data",
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "num.network.threads": "2",
    "num.io.threads": "2",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
    "log.cleaner.dedupe.buffer.size": "4194304",
}
_ALONE = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "400"}
_TOGETHER = {
    "broker.session.timeout.ms": "1000",
    "broker.heartbeat.interval.ms": "250",
    "controller.quorum.fetch.timeout.ms": "1000",
    "replica.lag.time.max.ms": "3000",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One node on ``port`` in ``directory``. ``controllers`` is every node's controller port by node id, the same for
    all nodes of a cluster; ``properties`` are added last."""

    directory: Path
    port: int
    controllers: Mapping[int, int]
    id: int = 1
    cluster_id: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The content of ``server.properties``."""
        replicas = len(self.controllers)
        listeners = f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{self.controllers[self.id]}"
        in_sync = str(replicas // 2 + 1)
        lines = _COMMON | (_ALONE if replicas == 1 else _TOGETHER)
        lines |= {
            "node.id": str(self.id),
            "controller.quorum.voters": ",".join(f"{node}@{HOST}:{port}" for node, port in self.controllers.items()),
            "listeners": listeners,
            "advertised.listeners": listeners,
            "default.replication.factor": str(replicas),
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": str(replicas),
            "transaction.state.log.replication.factor": str(replicas),
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": str(replicas),
            "share.coordinator.state.topic.min.isr": in_sync,
        }
        return "".join(f"{name}={value}\n" for name, value in (lines | dict(self.properties)).items())

    def prepare(self) -> list[str]:
        """Write the node's files, format its data at the first time, and give the command that runs it, to be started
        in ``directory``. Raises LocalKafkaError."""
        java = [str(find_java()), *_JVM, *_LOG, "-cp", ":".join(str(path) for path in classpath())]
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "server.properties").write_text(self.text(), encoding="utf-8")
            if not (self.directory / "data" / "meta.properties").exists():
                self._format(java)
        except OSError as error:
            raise LocalKafkaError(
                f"Kafka's directory {self.directory} cannot be written: {error.strerror}",
                hint="Make it writable, or name another one",
            ) from error
        return [*java, "kafka.Kafka", "server.properties"]

    def _format(self, java: list[str]) -> None:
        command = [*java, "kafka.tools.StorageTool", "format", "--ignore-formatted", "-c", "server.properties"]
        command += ["-t", self.cluster_id or new_cluster_id()]
        try:
            ran = subprocess.run(
                command, cwd=self.directory, capture_output=True, text=True, timeout=_FORMAT_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            raise LocalKafkaError(
                f"Kafka did not format {self.directory / 'data'} in {_FORMAT_TIMEOUT:g} s",
                hint=f"See what holds up {command[0]}",
            ) from None
        if ran.returncode != 0:
            said = reason(ran.stderr or ran.stdout)
            raise LocalKafkaError(
                f"Kafka cannot format {self.directory / 'data'}: {said}", hint="Mend what it says, or name another one"
            )

    def is_ready(self) -> bool:
        """Whether this node takes clients: it lists itself among the brokers in service."""
        found = metadata.ask(HOST, self.port)
        return found is not None and found.brokers.get(self.id) == self.port


def new_cluster_id() -> str:
    """16 random bytes in base64 as Kafka has them; one that begins with ``-`` would be read as an option."""
    while (name := base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")).startswith("-"):
        pass
    return name
