"""The suite's goals, each as one line: what Tailrace measured, what its peer did in the same run, met or not.

Medians over quiet repetitions; over all of them, marked `~`, where none was quiet.
A goal without a measurement says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

NATS, R3, KAFKA, REDIS = "tailrace-nats", "tailrace-nats-r3", "tailrace-kafka", "tailrace-redis"
RUST, NPM = "dsrs-file", "as-redis-100"  # durable-streams-server, and assistant-stream's store at its usual 100 ms poll
Get = Callable[[dict[str, Any]], float]


class Goal(NamedTuple):
    target: str
    peer: str
    cell: str
    what: str
    get: Get
    rule: str
    met: Callable[[float, float], bool]  # (ours, peer's)


def _ms(field: str) -> Get:
    return lambda row: row[field] / 1000


def _chunks(row: dict[str, Any]) -> float:
    return row["chunks_s"] or 0.0


def _shown(_: float, __: float) -> bool:
    """No goal: the two stand beside each other."""
    return True


def _least(value: float) -> Callable[[float, float], bool]:
    return lambda ours, _: ours >= value


def _most(value: float) -> Callable[[float, float], bool]:
    return lambda ours, _: ours <= value


def _share(factor: float) -> Callable[[float, float], bool]:
    return lambda ours, peer: ours <= factor * peer


def _no_less(ours: float, peer: float) -> bool:
    return ours >= peer


P50, P99 = "latency p50, ms", "latency p99, ms"
GOALS = (
    Goal(NATS, RUST, "M1.100", P50, _ms("lat_p50"), "<= 3x peer", _share(3)),
    Goal(NATS, RUST, "M1.100", P99, _ms("lat_p99"), "<= peer", _share(1)),
    # The window ends while the last chunk is on its way: 1 % of slack is one chunk of a quick run.
    Goal(NATS, RUST, "M2.1000", "delivered/s", lambda r: r["delivered_s_in_window"], ">= 50,000", _least(49_500)),
    Goal(NATS, RUST, "M2.1000", P50, _ms("lat_p50"), "<= peer", _share(1)),
    Goal(NATS, RUST, "M3.1", "chunks/s", _chunks, ">= peer", _no_less),
    Goal(NATS, RUST, "M3.50", "chunks/s", _chunks, ">= peer", _no_less),
    Goal(NATS, RUST, "M4", "chunks/s", _chunks, ">= 60,000", _least(60_000)),
    Goal(NATS, RUST, "M5", "first chunk p50, ms", _ms("ttfb_p50"), "<= 1", _most(1)),
    Goal(NATS, RUST, "M6", "gateway CPU, %", lambda r: r["cpu"]["server"], "<= 1", _most(1)),
    Goal(KAFKA, RUST, "M1.100", P50, _ms("lat_p50"), "<= 4", _most(4)),
    Goal(KAFKA, RUST, "M1.100", P99, _ms("lat_p99"), "<= 25", _most(25)),
    Goal(KAFKA, RUST, "M3.1", "chunks/s", _chunks, ">= peer", _no_less),
    Goal(KAFKA, RUST, "M3.50", "chunks/s", _chunks, ">= peer", _no_less),
    Goal(KAFKA, RUST, "M4", "chunks/s", _chunks, ">= 60,000", _least(60_000)),
    Goal(KAFKA, RUST, "M6", "gateway CPU, %", lambda r: r["cpu"]["server"], "<= 2", _most(2)),
    Goal(REDIS, NPM, "M1.1", P50, _ms("lat_p50"), "<= 0.1x peer", _share(0.1)),
    Goal(REDIS, NPM, "M1.20", P50, _ms("lat_p50"), "<= 0.1x peer", _share(0.1)),
    Goal(REDIS, NPM, "M1.100", P50, _ms("lat_p50"), "<= 0.1x peer", _share(0.1)),
    Goal(REDIS, NPM, "M6", "Redis commands/s", lambda r: r["redis_cmds_s"], "", _shown),
    Goal(R3, NATS, "M1.1", P50, _ms("lat_p50"), "", _shown),
    Goal(R3, NATS, "M1.100", P50, _ms("lat_p50"), "", _shown),
    Goal(R3, NATS, "M1.100", P99, _ms("lat_p99"), "", _shown),
    Goal(R3, NATS, "M4", "chunks/s", _chunks, "", _shown),
)


def measured(rows: Iterable[dict[str, Any]], target: str, cell: str, get: Get) -> tuple[float | None, str]:
    """(median, "~" if every repetition was noisy)."""
    fits = [r for r in rows if r.get("target") == target and r.get("cell") == cell and not r.get("error")]
    quiet = [r for r in fits if not r["noisy"]]
    used = quiet or fits
    return (median(map(get, used)), "" if quiet else "~") if used else (None, "")


def table(rows: list[dict[str, Any]]) -> str:
    """Those of targets that took part."""
    took_part = {row.get("target") for row in rows}
    lines = ["| target | cell | what | measured | peer | its | goal | |", "|---|---|---|---|---|---|---|---|"]
    for goal in GOALS:
        if goal.target not in took_part:
            continue
        ours, our_mark = measured(rows, goal.target, goal.cell, goal.get)
        peer, peer_mark = measured(rows, goal.peer, goal.cell, goal.get)
        if ours is None or (peer is None and "peer" in goal.rule):
            verdict = "not measured"
        else:
            verdict = "" if not goal.rule else "met" if goal.met(ours, peer or 0.0) else "MISSED"
        shown = [
            f"{v:,.{0 if v > 1000 else 2}f}{m}" if v is not None else "-"
            for v, m in ((ours, our_mark), (peer, peer_mark))
        ]
        parts = (goal.target, goal.cell, goal.what, shown[0], goal.peer, shown[1], goal.rule, verdict)
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
