"""Cells that need no peer: what a call in the producer's own process, a resume and an idle reader cost.

    append   20 streams as fast as acks allow, from one process straight into JetStream on disk
    resume   first byte of a live stream of 1000 chunks, each stored by a publish of its own:
               warm       another reader is attached
               seen       the gateway has served it before, nobody is attached now
               cold       a gateway that never saw the stream (and, apart, its very first request)
    idle     500 streams with one idle reader each: CPU, and every command that reached the broker

A first byte is timed by one blocking socket, from before connect() until the first chunk's first byte.
Prints a table; --out appends JSON lines, one a row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvloop

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/bench"
BIN = Path(sys.executable).parent
sys.path.insert(0, str(HERE))
from agent import Order, Production, now_us, quantiles  # noqa: E402
from producer import call, produce  # noqa: E402

Row = dict[str, Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get_json(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return json.load(answer)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def host_speed() -> int:
    """Loops per CPU millisecond: shared hosts change their speed twofold without showing it."""
    began, loops = time.thread_time(), 0
    for _ in range(300_000):
        loops += 1
    return round(loops / (time.thread_time() - began) / 1000)


class System:
    """A broker on disk, and the processes beside it; each ends with its block, by pid."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.nats_port, self.monitor_port = free_port(), free_port()
        self.url = f"nats://127.0.0.1:{self.nats_port}"

    @contextmanager
    def process(self, name: str, port: int, *argv: object, path: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """Started and ready: the port answers and, with a path, so does GET path."""
        log = self.work / f"{name}.log"
        with log.open("ab") as sink:
            child = subprocess.Popen([str(a) for a in argv], stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
        try:
            self._await_ready(name, child, port, path, log)
            yield child
        finally:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _await_ready(self, name: str, child: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end and child.poll() is None:
            with suppress(OSError, urllib.error.HTTPError):
                if path:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
                else:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                return
            time.sleep(0.03)
        raise RuntimeError(f"{name} is not ready: {log.read_text()[-1000:]}")

    @contextmanager
    def broker(self) -> Iterator[subprocess.Popen[bytes]]:
        argv = (BIN / "nats-server", "-a", "127.0.0.1", "-p", self.nats_port, "-m", self.monitor_port)
        with self.process("nats", self.nats_port, *argv, "-js", "-sd", self.work / "js") as child:
            yield child

    @contextmanager
    def gateway(self) -> Iterator[tuple[int, int]]:
        """Yields (port, pid)."""
        port = free_port()
        argv = (BIN / "tailrace", "gateway", "--store", self.url, "--host", "127.0.0.1", "--port", port)
        with self.process("gateway", port, *argv, path="/readyz") as child:
            yield port, child.pid

    @contextmanager
    def agent(self) -> Iterator[tuple[int, int]]:
        """Yields (port, pid)."""
        port = free_port()
        argv = (sys.executable, HERE / "agent.py", "--store", self.url, "--port", port)
        with self.process("agent", port, *argv) as child:
            yield port, child.pid

    def broker_counts(self) -> dict[str, int]:
        varz = get_json(self.monitor_port, "/varz")
        api = get_json(self.monitor_port, "/jsz").get("api", {}).get("total", 0)
        return {"in_msgs": varz["in_msgs"], "out_msgs": varz["out_msgs"], "api": api}


def open_reader(port: int, sid: str) -> tuple[socket.socket, bytes]:
    """A request sent and its headers read; returns the socket and the body bytes that came along."""
    link = socket.create_connection(("127.0.0.1", port), 30)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.sendall(f"GET /v1/runs/{sid} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
    seen = b""
    while b"\r\n\r\n" not in seen:
        part = link.recv(65536)
        if not part:
            raise RuntimeError(f"{sid}: closed after {seen[:200]!r}")
        seen += part
    head, body = seen.split(b"\r\n\r\n", 1)
    if b" 200 " not in head[:16]:
        raise RuntimeError(f"{sid}: {head[:60]!r} {body[:200]!r}")
    return link, body


def first_byte_us(port: int, sid: str) -> int:
    began = now_us()
    link, seen = open_reader(port, sid)
    with link:
        while b"@" not in seen:  # chunked framing has no @, every chunk begins with one
            part = link.recv(65536)
            if not part:
                raise RuntimeError(f"{sid}: ended before its first chunk")
            seen = part
        return now_us() - began


# ---------------------------------------------------------------- append, kept, in process
def append_cell(args: argparse.Namespace, work: Path) -> Iterator[Row]:
    for how, batch, window in (("extend, 64 a call", 64, 2), ("append, 64 in flight", 1, 64)):
        folder = work / f"append-{batch}"
        folder.mkdir()
        system = System(folder)
        with system.broker() as broker:
            before = cpu_seconds(broker.pid)
            result = uvloop.run(append_run(system.url, args, batch, window))
            elapsed = (result["t_last_us"] - result["t0_us"]) / 1e6
            yield {
                "cell": "append in process",
                "case": f"{args.streams} streams, {how}",
                "value": round(result["acked"] / elapsed),
                "unit": "chunks/s",
                "goal": ">= 60000",
                "verified": result["verified"],
                "ack_us": result["ack"],
                "chunks": result["acked"],
                "errors": result["errors"],
                "first_error": result["first_error"],
                "process_cpu": round(100 * result["cpu_us"] / result["wall_us"], 1),
                "store_cpu": round(100 * (cpu_seconds(broker.pid) - before) / elapsed, 1),
            }


async def append_run(url: str, args: argparse.Namespace, batch: int, window: int) -> Row:
    from tailrace.connect import connect

    sids = [f"append-{i}" for i in range(args.streams)]
    async with await connect(url) as store:
        leases = {sid: (await store.acquire(sid)).lease for sid in sids}
        warm = Order(sids, n=batch * 8, batch=batch, window=window)
        await Production(store, leases, warm).run()
        order = Order(sids, maxms=int(args.seconds * 1000), seq0=warm.n, batch=batch, window=window)
        result = await Production(store, leases, order).run()
        for sid in sids:
            await store.finalize(sid, "done", lease=leases[sid])
    async with await connect(url) as other:  # a store that wrote none of it
        expected = warm.n + result["counts"][0]
        result["verified"] = expected == await count_in_order(other, sids[0])
    return result


async def count_in_order(store: Any, sid: str) -> int:
    """Chunks read back while each is the successor of the one before."""
    count = 0
    async for entry in store.read(sid):
        if int(entry.chunk[26:33]) != count:
            break
        count += 1
    return count


# ---------------------------------------------------------------- resume, first byte
def resume_cell(args: argparse.Namespace, work: Path) -> Iterator[Row]:
    def row(case: str, goal: str, values: list[int]) -> Row:
        found = quantiles(values) or {}
        return {
            "cell": "resume, first byte",
            "case": case,
            "value": found["p50"] / 1000,
            "unit": "ms p50",
            "goal": goal,
            "us": found,
        }

    groups = [[f"cold-{g}-{i}" for i in range(args.cold)] for g in range(args.gateways)]
    system = System(work)
    with system.broker(), system.agent() as (agent, _):
        sids = [sid for group in groups for sid in group]
        call(agent, "create", [*sids, "warm"])
        produce(agent, sids=[*sids, "warm"], n=1000, batch=1, window=1)
        very_first, cold, seen, warm = [], [], [], []
        for group in groups:
            with system.gateway() as (port, _):
                first, *others = [first_byte_us(port, sid) for sid in group]
                very_first.append(first)
                cold += others
        with system.gateway() as (port, _):
            first_byte_us(port, "warm")
            seen += [first_byte_us(port, "warm") for _ in range(args.resumes)]
            held, _ = open_reader(port, "warm")
            with held:
                warm += [first_byte_us(port, "warm") for _ in range(args.resumes)]
        yield row("warm: another reader attached", "<= 1", warm)
        yield row("seen: served before, nobody attached", "", seen)
        yield row(f"cold: {args.gateways} fresh gateways x {args.cold - 1} streams", "<= 20", cold)
        yield row("cold, and the gateway's very first request", "", very_first)


# ---------------------------------------------------------------- idle readers
def idle_cell(args: argparse.Namespace, work: Path) -> Iterator[Row]:
    system = System(work)
    sids = [f"idle-{i}" for i in range(args.readers)]
    with ExitStack() as stack:
        broker = stack.enter_context(system.broker())
        agent, agent_pid = stack.enter_context(system.agent())
        port, gateway_pid = stack.enter_context(system.gateway())
        call(agent, "create", sids)
        produce(agent, sids=sids, n=1, batch=1)
        for sid in sids:
            stack.enter_context(open_reader(port, sid)[0])
        time.sleep(3)  # what follows an attach is no part of being idle
        pids = {"gateway": gateway_pid, "producer": agent_pid, "store": broker.pid}
        began, counts = time.monotonic(), system.broker_counts()
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        time.sleep(args.idle)
        elapsed = time.monotonic() - began
        rates = {name: round((n - counts[name]) / elapsed, 2) for name, n in system.broker_counts().items()}
        cpu = {name: round(100 * (cpu_seconds(pid) - before[name]) / elapsed, 2) for name, pid in pids.items()}
        clients = get_json(system.monitor_port, "/connz")["connections"]
    case = f"{args.readers} streams, one idle reader each, {args.idle:g} s"
    common = {"cell": "idle readers", "case": case, "cpu": cpu, "broker_per_s": rates, "connections": len(clients)}
    yield common | {"value": cpu["gateway"], "unit": "% CPU", "goal": "<= 1"}
    yield common | {"value": rates["in_msgs"], "unit": "broker msgs in/s", "goal": "heartbeats only"}
    yield common | {"value": rates["api"], "unit": "JetStream API calls/s", "goal": "0"}


CELLS = {"append": append_cell, "resume": resume_cell, "idle": idle_cell}


def table(rows: list[Row]) -> str:
    lines = ["| cell | case | measured | goal | host speed |", "|---|---|---|---|---|"]
    for row in rows:
        measured = row.get("error") or f"{row['value']:,} {row['unit']}"
        lines.append(f"| {row['cell']} | {row['case']} | {measured} | {row.get('goal', '')} | {row['speed']:,} |")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for name in args.only.split(","):
        work = Path(tempfile.mkdtemp(prefix="tailrace-bench-"))
        speed = host_speed()
        found: list[Row] = []
        try:
            found.extend(CELLS[name](args, work))
        except Exception as error:  # noqa: BLE001 - a cell that fails is a result, the others still run
            found.append({"cell": name, "case": "", "error": f"{type(error).__name__}: {error}"[:600]})
        finally:
            shutil.rmtree(work, ignore_errors=True)
        for row in found:
            row |= {"speed": speed, "at": round(time.time())}
            print(json.dumps(row), flush=True)
        rows += found
    return rows


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default=",".join(CELLS))
    options.add_argument("--out", type=Path, help="append the rows here as JSON lines")
    options.add_argument("--table", type=Path, help="write the table here too")
    options.add_argument("--streams", type=int, default=20)
    options.add_argument("--seconds", type=float, default=5, help="length of an append run")
    options.add_argument("--gateways", type=int, default=3, help="fresh gateways for the cold resumes")
    options.add_argument("--cold", type=int, default=20, help="streams that each fresh gateway reads, once")
    options.add_argument("--resumes", type=int, default=200)
    options.add_argument("--readers", type=int, default=500)
    options.add_argument("--idle", type=float, default=20, help="length of the idle window, s")
    args = options.parse_args()
    rows = run(args)
    if args.out:
        with args.out.open("a") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    if args.table:
        args.table.write_text(table(rows) + "\n")
    else:
        print("\n" + table(rows))
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
