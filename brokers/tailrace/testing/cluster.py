"""Three nats-servers with JetStream as one cluster, for tests: any of them killed, paused and started again."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from tailrace._ports import choose_port
from tailrace.testing.server_process import HOST, Killed
from tailrace.testing.servers import NatsServer

SIZE, SHARDS = 3, 4
PATIENCE = 60.0  # seconds for an election, with all else that the machine does
LOOK_INTERVAL = 0.05
NAME = "tailrace-test"
SHARD = re.compile(r"_S_\d+$")  # the streams that hold records; others hold heartbeats, runs or segments
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy that the environment names


class NatsCluster(Killed):
    """A cluster with its data in ``directory``: as one broker, and a leader alone (`kill_leader`). `start` brings back
    whoever is away."""

    def __init__(self, directory: Path) -> None:
        self.nodes: dict[str, NatsServer] = {}
        self._monitors: dict[str, int] = {}
        self._directory = directory

    @property
    def url(self) -> str:
        """The URL of all nodes, which asks for three replicas."""
        return f"nats://{self.hosts}/?replicas={SIZE}&shards={SHARDS}"

    @property
    def hosts(self) -> str:
        """``host:port`` of every node, separated by commas."""
        return ",".join(f"{HOST}:{node.port}" for node in self.nodes.values())

    def start(self) -> Self:
        """Run the nodes that do not run, and return when each is in touch with a leader of the cluster."""
        if not self.nodes:
            self._describe()
        for node in self.nodes.values():
            if not node.running:
                node.start()
        self.await_health()
        return self

    def _describe(self) -> None:
        ports = [choose_port(None, None) for _ in range(3 * SIZE)]  # a cluster's nodes name one another before they run
        routes, monitors, clients = ports[:SIZE], ports[SIZE : 2 * SIZE], ports[2 * SIZE :]
        others = ", ".join(f"nats://{HOST}:{port}" for port in routes)
        for number, (route, monitor, port) in enumerate(zip(routes, monitors, clients, strict=True), 1):
            name = f"n{number}"
            config = (
                f'server_name: {name}\nhttp: "{HOST}:{monitor}"\n'
                f'cluster {{ name: {NAME}, listen: "{HOST}:{route}", routes: [{others}] }}'
            )
            self.nodes[name] = NatsServer(self._directory / name, config=config)
            self.nodes[name].port = port
            self._monitors[name] = monitor

    def await_health(self) -> None:
        """Return when each running node serves JetStream. Raises RuntimeError with its log where one does not."""
        deadline = time.monotonic() + PATIENCE
        waiting = [name for name, node in self.nodes.items() if node.running]
        while waiting:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{waiting[0]} is not well:\n{self.nodes[waiting[0]].log[-4000:]}")
            waiting = [name for name in waiting if self._ask(name, "healthz").get("status") != "ok"]
            time.sleep(LOOK_INTERVAL if waiting else 0)

    def leaders(self) -> dict[str, str]:
        """The name of the node that leads each stream, as the nodes that run tell it."""
        return {stream: leader for name in self.nodes for stream, leader in self._told_by(name)}

    def led_by(self, name: str) -> set[str]:
        """The streams that the node leads by its own word; none where it does not run."""
        return {stream for stream, leader in self._told_by(name) if leader == name}

    def _told_by(self, name: str) -> Iterator[tuple[str, str]]:
        for account in self._ask(name, "jsz?accounts=1&streams=1&config=0").get("account_details", ()):
            for stream in account.get("stream_detail", ()):
                if leader := stream.get("cluster", {}).get("leader"):
                    yield stream["name"], leader

    def leader(self, stream: str) -> str:
        """The name of the node that leads ``stream``, waited for: others say so, and so does it itself."""
        deadline = time.monotonic() + PATIENCE
        while (leader := self.leaders().get(stream)) is None or stream not in self.led_by(leader):
            if time.monotonic() > deadline:
                raise RuntimeError(f"Nobody leads {stream}: {self.leaders()}")
            time.sleep(LOOK_INTERVAL)
        return leader

    def kill_leader(self) -> tuple[str, set[str]]:
        """SIGKILL for the node that leads the most shards. Its name, and the shards that it led by its own word."""
        led = {name: {stream for stream in self.led_by(name) if SHARD.search(stream)} for name in self.nodes}
        leader = max(led, key=lambda name: len(led[name]))
        self.nodes[leader].kill()
        return leader, led[leader]

    def kill(self) -> None:
        """SIGKILL for all nodes."""
        for node in self.nodes.values():
            node.kill()

    def pause(self) -> None:
        """SIGSTOP for all nodes."""
        for node in self.nodes.values():
            node.pause()

    def resume(self) -> None:
        """SIGCONT for all nodes."""
        for node in self.nodes.values():
            node.resume()

    def _ask(self, name: str, what: str) -> Mapping[str, Any]:
        """A node's answer to a monitoring request; empty where there is none."""
        try:
            with _OPENER.open(f"http://{HOST}:{self._monitors[name]}/{what}", timeout=2) as answer:
                told: dict[str, Any] = json.load(answer)
        except (OSError, ValueError):
            return {}
        return told
