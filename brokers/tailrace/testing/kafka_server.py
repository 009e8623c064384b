"""Real Apache Kafka for tests: one node, or a cluster, killed, paused and restarted by process id.

The jars must have been fetched (`tailrace kafka fetch`). A node costs 160 MB and two seconds to start: share one among
the tests of a module, each with topics of its own, and take one alone only to kill it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tailrace._ports import choose_port
from tailrace._ties import tie_where_possible
from tailrace.kafka_local import metadata
from tailrace.kafka_local.node import Node, new_cluster_id
from tailrace.testing.server_process import HOST, START_TIMEOUT, Killed, ServerProcess

LOOK_INTERVAL = 0.05


class KafkaServer(ServerProcess):
    """One Kafka node with its data in ``directory``; `start` (or ``with``) runs it. ``properties`` are added to its
    own. The ports are chosen at the first start and kept."""

    look_interval = LOOK_INTERVAL

    def __init__(
        self,
        directory: Path,
        *,
        properties: Mapping[str, str] | None = None,
        node_id: int = 1,
        controllers: Mapping[int, int] | None = None,
        cluster_id: str = "",
    ) -> None:
        super().__init__(directory)
        self.id = node_id
        self._controllers = controllers
        self._cluster_id = cluster_id
        self._properties = properties or {}

    @property
    def url(self) -> str:
        """`kafka://127.0.0.1:port`."""
        return f"kafka://{self.bootstrap}"

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:port`, as clients want it."""
        return f"{HOST}:{self.port}"

    def leader(self, topic: str, partition: int = 0) -> int | None:
        """The id of the node that leads the partition now, as this one knows it; None where nobody does."""
        found = metadata.ask(HOST, self.port, [topic])
        leader = found.leaders.get((topic, partition), -1) if found else -1
        return leader if leader >= 0 else None

    def _spawn(self) -> None:
        self.port = self.port or choose_port(None, None)
        if self._controllers is None:
            self._controllers = {self.id: choose_port(None, None)}
        node = self._node = Node(
            self.directory, self.port, self._controllers, self.id, self._cluster_id, self._properties
        )
        command = node.prepare()
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=tie_where_possible(),  # noqa: PLW1509 - one call that takes no lock
            )

    def _is_ready(self) -> bool:
        return self._node.is_ready()


class KafkaCluster(Killed):
    """``size`` Kafka nodes that know each other, in folders of ``directory``: as one broker, and the leader of a
    partition alone. `start` (or ``with``) runs the nodes that do not run."""

    def __init__(self, directory: Path, size: int = 3, *, properties: Mapping[str, str] | None = None) -> None:
        controllers = {node: choose_port(None, None) for node in range(1, size + 1)}
        cluster_id = new_cluster_id()
        self.nodes = [
            KafkaServer(
                directory / f"node-{node}",
                properties=properties,
                node_id=node,
                controllers=controllers,
                cluster_id=cluster_id,
            )
            for node in controllers
        ]

    @property
    def url(self) -> str:
        """The URL of all nodes, which asks for as many replicas as there are, acknowledged by more than half."""
        size = len(self.nodes)
        return f"kafka://{self.bootstrap}/?replicas={size}&min_insync_replicas={size // 2 + 1}"

    @property
    def bootstrap(self) -> str:
        """Every node's address, as clients want them."""
        return ",".join(node.bootstrap for node in self.nodes)

    def leader(self, topic: str, partition: int = 0) -> KafkaServer:
        """The running node that leads the partition now; waits until there is one."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            for node in self.nodes:
                leader = node.leader(topic, partition) if node.running else None
                leading = next((one for one in self.nodes if one.id == leader and one.running), None)
                if leading is not None:
                    return leading
            time.sleep(LOOK_INTERVAL)
        raise RuntimeError(f"nobody leads {topic}-{partition}")

    def start(self) -> Self:
        """Run the nodes that do not run, and return when each takes connections and sees all the others."""
        try:
            coming = [node for node in self.nodes if not node.running]
            for node in coming:
                node.kill()  # what ended by itself is forgotten
                node._spawn()
            for node in coming:
                node._await_ready()
            self._await_all()
        except BaseException:
            self.kill()
            raise
        return self

    def _await_all(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            seen = [metadata.ask(HOST, node.port) for node in self.nodes]
            if all(one is not None and len(one.brokers) == len(self.nodes) for one in seen):
                return
            time.sleep(LOOK_INTERVAL)
        raise RuntimeError(f"the nodes do not find each other:\n{self.nodes[0].log[-4000:]}")

    def kill(self) -> None:
        """SIGKILL for all nodes."""
        for node in self.nodes:
            node.kill()

    def kill_leader(self, topic: str, partition: int = 0) -> KafkaServer:
        """SIGKILL for the node that leads the partition, which is given back."""
        leader = self.leader(topic, partition)
        leader.kill()
        return leader

    def pause(self) -> None:
        """SIGSTOP for all nodes."""
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        """SIGCONT for all nodes."""
        for node in self.nodes:
            node.resume()
