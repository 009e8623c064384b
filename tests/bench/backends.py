"""The brokers of the benchmark, each a real one with its data on disk, started in a folder and ended by pid.

    nats        one nats-server, syncing every two minutes (its default)
    nats-sync   the same, syncing before each acknowledgement
    nats-r3     three of them, and three copies of everything
    kafka       one Apache Kafka node (256 MiB of heap, the page cache for durability: its default)
    redis       one Redis with an append-only file, syncing every second

The servers are those of the tests (`tailrace.testing`).
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailrace._ports import choose_port
from tailrace.testing.cluster import SIZE, NatsCluster
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.redis_server import RedisServer
from tailrace.testing.servers import NatsServer

_SYNC = 'jetstream { store_dir: "data", sync_interval: always }'


class Broker:
    """A broker of one ``kind``; a context manager. ``folder`` is where its data is."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self._monitor = choose_port(None, None)
        self._server = _KINDS[kind](folder, self._monitor)

    @property
    def url(self) -> str:
        if isinstance(self._server, NatsCluster):
            return f"nats://{self._server.hosts}/?replicas={SIZE}"
        return str(self._server.url)

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        nodes = self._server.nodes.values() if isinstance(self._server, NatsCluster) else [self._server]
        return [node._process for node in nodes if node._process is not None]

    def start(self) -> Broker:
        self._server.start()
        return self

    def kill(self) -> None:
        self._server.kill()

    def cpu_seconds(self) -> float:
        return sum(cpu_seconds(process.pid) for process in self.processes)

    def resident_mib(self) -> float:
        return sum(resident_mib(process.pid) for process in self.processes)

    def stored_mib(self) -> float:
        """What its files take on the disk."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in files) / 2**20

    def counts(self) -> dict[str, int]:
        """What reached it since its start. Nothing where the broker does not tell."""
        if self.kind.startswith("nats") and not isinstance(self._server, NatsCluster):
            told = get_json(self._monitor, "/varz")
            api = get_json(self._monitor, "/jsz").get("api", {}).get("total", 0)
            return {"messages": told["in_msgs"], "JetStream API calls": api}
        if isinstance(self._server, RedisServer):
            stats = self._server.ask("INFO", "stats")
            return {"commands": int(stats.split(b"total_commands_processed:")[1].split()[0])}
        return {}

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.kill()


def _nats(folder: Path, monitor: int) -> NatsServer:
    return NatsServer(folder, config=f'http: "127.0.0.1:{monitor}"')


def _synced(folder: Path, monitor: int) -> NatsServer:
    return NatsServer(folder, jetstream=False, config=f'{_SYNC}\nhttp: "127.0.0.1:{monitor}"')


_KINDS: dict[str, Callable[[Path, int], Any]] = {
    "nats": _nats,
    "nats-sync": _synced,
    "nats-r3": lambda folder, _: NatsCluster(folder),
    "kafka": lambda folder, _: KafkaServer(folder),
    "redis": lambda folder, _: RedisServer(folder, config="appendfsync everysec"),
}


def get_json(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return json.load(answer)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
