"""Cells that need no peer: what a call in the producer's own process, a resume and an idle reader cost.

    append   20 streams as fast as acks allow, from one process straight into the broker
    resume   first byte of a live stream of 1000 chunks, each stored by a publish of its own:
               warm       another reader is attached
               seen       the gateway has served it before, nobody is attached now
               cold       a gateway that never saw the stream (and, apart, its very first request)
    attach   first byte of a live stream of one chunk, on a partition that the gateway does not follow yet (Kafka)
    idle     500 streams with one idle reader each: CPU, and every command that reached the broker
    growth   see growth.py

A first byte is timed by one blocking socket, from before connect() until the first chunk's first byte.
`--brokers` names others than each cell's own; backends.py has them all. Prints a table; --out appends JSON lines, one a
row.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parent))
from agent import Order, Production, quantiles
from backends import cpu_seconds
from growth import growth_cell
from producer import call, produce
from system import first_byte_us, host_speed, open_reader, system

Row = dict[str, Any]


# ---------------------------------------------------------------- append, kept, in process
def append_cell(args: argparse.Namespace, kind: str, work: Path) -> Iterator[Row]:
    for how, batch, window in (("extend, 64 a call", 64, 2), ("append, 64 in flight", 1, 64)):
        with system(kind, work / f"append-{batch}") as on:
            before = on.broker.cpu_seconds()
            result = uvloop.run(append_run(on.broker.url, args, batch, window))
            elapsed = (result["t_last_us"] - result["t0_us"]) / 1e6
            yield {
                "cell": "append in process",
                "case": f"{args.streams} streams, {how}",
                "value": round(result["acked"] / elapsed),
                "unit": "chunks/s",
                "goal": ">= 60000" if kind in ("nats", "kafka") else "",
                "verified": result["verified"],
                "ack_us": result["ack"],
                "chunks": result["acked"],
                "errors": result["errors"],
                "first_error": result["first_error"],
                "process_cpu": round(100 * result["cpu_us"] / result["wall_us"], 1),
                "store_cpu": round(100 * (on.broker.cpu_seconds() - before) / elapsed, 1),
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
def timed(cell: str, case: str, goal: str, values: list[int]) -> Row:
    found = quantiles(values) or {}
    return {"cell": cell, "case": case, "value": found["p50"] / 1000, "unit": "ms p50", "goal": goal, "us": found}


def resume_cell(args: argparse.Namespace, kind: str, work: Path) -> Iterator[Row]:
    def row(case: str, goal: str, values: list[int]) -> Row:
        return timed("resume, first byte", case, goal, values)

    groups = [[f"cold-{g}-{i}" for i in range(args.cold)] for g in range(args.gateways)]
    with system(kind, work) as on, on.agent() as (agent, _):
        sids = [sid for group in groups for sid in group]
        call(agent, "create", [*sids, "warm"])
        produce(agent, sids=[*sids, "warm"], n=1000, batch=1, window=1)
        very_first, cold, seen, warm = [], [], [], []
        for group in groups:
            with on.gateway() as (port, _):
                first, *others = [first_byte_us(port, sid) for sid in group]
                very_first.append(first)
                cold += others
        with on.gateway() as (port, _):
            first_byte_us(port, "warm")
            seen += [first_byte_us(port, "warm") for _ in range(args.resumes)]
            held, _ = open_reader(port, "warm")
            with held:
                warm += [first_byte_us(port, "warm") for _ in range(args.resumes)]
        yield row("warm: another reader attached", "<= 1", warm)
        yield row("seen: served before, nobody attached", "", seen)
        yield row(f"cold: {args.gateways} fresh gateways x {args.cold - 1} streams", "<= 20", cold)
        yield row("cold, and the gateway's very first request", "", very_first)


# ---------------------------------------------------------------- attach, on a partition nobody follows
def attach_cell(args: argparse.Namespace, kind: str, work: Path) -> Iterator[Row]:
    from tailrace.kafka import KafkaOptions
    from tailrace.kafka.topics import Names

    names, sids = Names(KafkaOptions()), {}
    for number in range(1000):
        sid = f"attach-{number}"
        sids.setdefault(names.records(sid).partition, sid)
    found: list[int] = []
    with system(kind, work) as on, on.agent() as (agent, _):
        call(agent, "create", list(sids.values()))
        produce(agent, sids=list(sids.values()), n=1, batch=1)
        for _ in range(args.gateways):
            with on.gateway() as (port, _):
                found += [first_byte_us(port, sid) for sid in sids.values()][1:]
    case = f"{args.gateways} fresh gateways x {len(sids) - 1} partitions that they did not follow"
    yield timed("attach, first byte", case, "<= 15", found)


# ---------------------------------------------------------------- idle readers
def idle_cell(args: argparse.Namespace, kind: str, work: Path) -> Iterator[Row]:
    sids = [f"idle-{i}" for i in range(args.readers)]
    with ExitStack() as stack:
        on = stack.enter_context(system(kind, work))
        agent, agent_pid = stack.enter_context(on.agent())
        port, gateway_pid = stack.enter_context(on.gateway())
        call(agent, "create", sids)
        produce(agent, sids=sids, n=1, batch=1)
        for sid in sids:
            stack.enter_context(open_reader(port, sid)[0])
        time.sleep(3)  # what follows an attach is no part of being idle

        def spent() -> dict[str, float]:
            services = {"gateway": cpu_seconds(gateway_pid), "producer": cpu_seconds(agent_pid)}
            return services | {"broker": on.broker.cpu_seconds()}

        began, counts, before = time.monotonic(), on.broker.counts(), spent()
        time.sleep(args.idle)
        elapsed = time.monotonic() - began
        rates = {name: round((n - counts[name]) / elapsed, 2) for name, n in on.broker.counts().items()}
        cpu = {name: round(100 * (now - before[name]) / elapsed, 2) for name, now in spent().items()}
    case = f"{args.readers} streams, one idle reader each, {args.idle:g} s"
    common = {"cell": "idle readers", "case": case, "cpu": cpu}
    yield common | {"value": cpu["gateway"], "unit": "% CPU", "goal": "<= 2" if kind == "kafka" else "<= 1"}
    yield common | {"value": cpu["broker"], "unit": "% CPU of the broker"}
    for name, rate in rates.items():
        goal = {"messages": "heartbeats only", "JetStream API calls": "0"}.get(name, "")
        yield common | {"value": rate, "unit": f"{name}/s at the broker", "goal": goal}


# each cell, and the brokers that it runs on unless told
CELLS = {
    "append": (append_cell, "nats,kafka"),
    "resume": (resume_cell, "nats,kafka"),
    "attach": (attach_cell, "kafka"),
    "idle": (idle_cell, "nats,kafka,redis"),
    "growth": (growth_cell, "nats,kafka"),
}
QUICK = {"seconds": 2.0, "gateways": 2, "cold": 8, "resumes": 50, "idle": 8.0, "sizes": "1000,10000", "lookups": 50}


def table(rows: list[Row]) -> str:
    lines = ["| cell | broker | case | measured | goal | host speed |", "|---|---|---|---|---|---|"]
    for row in rows:
        measured = row.get("error") or f"{row['value']:,} {row['unit']}"
        parts = (row["cell"], row["broker"], row["case"], measured, row.get("goal", ""), f"{row['speed']:,}")
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for name in args.only.split(","):
        cell, usual = CELLS[name]
        for kind in (args.brokers or usual).split(","):
            rows += run_one(name, cell, kind, args)
    return rows


def run_one(name: str, cell: Any, kind: str, args: argparse.Namespace) -> list[Row]:
    """One cell on one broker; what it measured is printed at once."""
    work = Path(tempfile.mkdtemp(prefix="tailrace-bench-"))
    rows: list[Row] = []

    def take(row: Row) -> None:
        rows.append(row | {"broker": kind, "speed": host_speed(), "at": round(time.time())})
        print(json.dumps(rows[-1]), flush=True)

    try:
        for row in cell(args, kind, work):
            take(row)
    except Exception as error:  # noqa: BLE001 - a cell that fails is a result, the others still run
        take({"cell": name, "case": "", "error": f"{type(error).__name__}: {error}"[:600]})
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return rows


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default=",".join(CELLS))
    options.add_argument("--brokers", default="", help="instead of each cell's own")
    options.add_argument("--quick", action="store_true", help="shorter and smaller")
    options.add_argument("--out", type=Path, help="append the rows here as JSON lines")
    options.add_argument("--table", type=Path, help="write the table here too")
    options.add_argument("--streams", type=int, default=20)
    options.add_argument("--seconds", type=float, default=5, help="length of an append run")
    options.add_argument("--gateways", type=int, default=3, help="fresh gateways for cold resumes and attaches")
    options.add_argument("--cold", type=int, default=20, help="streams that each fresh gateway reads, once")
    options.add_argument("--resumes", type=int, default=200)
    options.add_argument("--readers", type=int, default=500)
    options.add_argument("--idle", type=float, default=20, help="length of the idle window, s")
    options.add_argument("--sizes", default="1000,10000,100000", help="of growth: streams stored, ascending")
    options.add_argument("--lookups", type=int, default=200, help="of growth: streams that are read")
    if "--quick" in sys.argv:
        options.set_defaults(**QUICK)
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
