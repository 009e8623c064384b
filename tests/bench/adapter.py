"""The suite's targets `tailrace-…`: a broker on disk, the gateway and the producer, each a process of its own.

run.py links this file into the suite's adapters folder. Chunks go from the agent straight into the store; readers
come through the gateway.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from tailbench import CommandProducerTarget, Proc, Req, free_port  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/bench"
BIN = ROOT / ".venv/bin"
sys.path.insert(0, str(HERE))
from backends import Broker  # noqa: E402
from producer import call, produce  # noqa: E402
from system import open_reader  # noqa: E402


class Tailrace(CommandProducerTarget):  # type: ignore[misc]
    batch, window = 64, 2  # of a stream at unlimited rate: chunks a call, calls in flight
    warm_up = 0  # chunks of each of 100 streams, at 50/s with a reader, before anything is measured
    replay_finished = True
    resume_from = True
    persists = True

    def __init__(self, name: str, broker: str, label: str, **differs: int) -> None:
        self.name, self.label, self._kind = name, f"Tailrace gateway on {label}", broker
        self.__dict__.update(differs)

    def setup(self, work: Path) -> list[Proc]:
        self.port, self.agent_port = free_port(), free_port()
        gateway = [BIN / "tailrace", "gateway", "--store", self._broker.url, "--host", "127.0.0.1", "--port", self.port]
        agent = [BIN / "python", HERE / "agent.py", "--store", self._broker.url, "--port", self.agent_port]
        return [
            Proc("gateway", gateway, ready_port=self.port, role="server"),
            Proc("agent", agent, ready_port=self.agent_port, role="producer"),
        ]

    def start(self, work: Path) -> None:
        self._broker = Broker(self._kind, work / "broker").start()
        self.redis_port = urlsplit(self._broker.url).port if self._kind == "redis" else None  # its commands are counted
        super().start(work)
        self.running += [(Proc(self._kind, [], role="store"), process) for process in self._broker.processes]
        end = time.monotonic() + 15
        while self.http(Req("GET", "/readyz"), ok=(200, 204, 503))[0].status == 503:
            if time.monotonic() > end:
                raise RuntimeError(f"gateway not ready: {(work / 'gateway.log').read_text()[-2000:]}")
            time.sleep(0.05)
        if self.warm_up:
            self._warm_up()

    def _warm_up(self) -> None:
        sids = [f"warm-{number}" for number in range(100)]
        call(self.agent_port, "create", sids)
        readers = [open_reader(self.port, sid)[0] for sid in sids]
        produce(self.agent_port, sids=sids, n=self.warm_up, rate=50)
        call(self.agent_port, "close", sids)
        for reader in readers:
            reader.close()

    def stop(self) -> None:
        self.running = [(proc, process) for proc, process in getattr(self, "running", []) if proc.role != "store"]
        super().stop()  # those that use the broker first
        if hasattr(self, "_broker"):
            self._broker.kill()

    def producer_argv(self) -> list[str]:
        return [
            str(BIN / "python"),
            "-S",
            "-E",
            str(HERE / "producer.py"),
            *map(str, (self.agent_port, self.batch, self.window)),
        ]

    def _append(self, *args, **options):  # type: ignore[no-untyped-def]
        # The producer is the agent: its CPU is the one to report, not that of the program that forwards to it.
        load = super()._append(*args, **options)
        load.pid = next(process.pid for proc, process in self.running if proc.name == "agent")
        return load

    def create_stream(self, sid: str) -> None:
        call(self.agent_port, "create", [sid])

    def close_stream(self, sid: str) -> None:
        call(self.agent_port, "close", [sid])

    def subscribe_req(self, sid: str, from_chunk: int | None = None, size: int = 60, finished: bool = False) -> Req:
        return Req("GET", f"/v1/runs/{sid}" + (f"?offset={from_chunk * size}" if from_chunk else ""))


TARGETS = [
    Tailrace("tailrace-nats", "nats", "NATS JetStream (file storage)"),
    # The load that the HTTP peers get in M4: one chunk outstanding per stream.
    Tailrace("tailrace-nats-serial", "nats", "NATS JetStream, M4 one chunk at a time per stream", batch=1, window=1),
    # The durability of dsrs-file, which syncs every append; the broker's default syncs every two minutes.
    Tailrace("tailrace-nats-sync", "nats-sync", "NATS JetStream, synced before each ack"),
    Tailrace("tailrace-nats-r3", "nats-r3", "NATS JetStream, three nodes, three copies"),
    # A JVM compiles what it does often: its first second under load says nothing of the next day.
    Tailrace("tailrace-kafka", "kafka", "Apache Kafka, one node, warm", warm_up=250),
    Tailrace("tailrace-redis", "redis", "Redis (AOF, everysec)"),
]
