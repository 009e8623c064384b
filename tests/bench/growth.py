"""The cell `growth`: what a gateway costs on a broker that keeps a thousand, ten thousand, a hundred thousand streams.

Each stream is whole and ended: a claim, one record of four chunks, an ending; 480 bytes of text. At each size the
broker is killed and started again, then a gateway is started that has seen none of it, and streams are read through it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from agent import chunk, quantiles
from backends import resident_mib
from system import System, first_byte_us, system

LANES = 200
BATCH = 10_000  # by one process: each stream that ended is looked at once more, whether it is to be sealed
CHUNKS, SIZE = 4, 120
SEED = 1


def growth_cell(args: argparse.Namespace, kind: str, work: Path) -> Iterator[dict[str, Any]]:
    stored = 0
    with system(kind, work) as on:
        for size in map(int, args.sizes.split(",")):
            began = time.monotonic()
            for first in range(stored, size, BATCH):
                uvloop.run(fill(on.broker.url, first, min(first + BATCH, size)))
            filled, stored = time.monotonic() - began, size
            yield from measured(on, size, args.lookups, {"filled_s": round(filled, 1)})


async def fill(url: str, first: int, end: int) -> None:
    """Streams ``first`` to ``end``, LANES at a time."""
    from tailrace.connect import connect

    numbers = iter(range(first, end))
    pad = b"x" * (SIZE - 35) + b"|"

    async with await connect(url) as store:

        async def lane() -> None:
            for number in numbers:
                sid = f"stored-{number}"
                lease = (await store.acquire(sid, patient=True)).lease
                await store.extend(sid, [chunk(seq, 0, pad) for seq in range(CHUNKS)], lease)
                await store.finalize(sid, "done", lease=lease)

        await asyncio.gather(*(lane() for _ in range(LANES)))


def measured(on: System, size: int, lookups: int, more: dict[str, Any]) -> Iterator[dict[str, Any]]:
    common = {"cell": "growth", "stored": size, **more}
    began = time.monotonic()
    on.broker.kill()
    on.broker.start()
    yield common | {"case": f"{size:,} streams: the broker, after SIGKILL", "value": since(began), "unit": "s"}
    began = time.monotonic()
    with on.gateway() as (port, pid):
        yield common | {"case": f"{size:,} streams: a gateway is ready", "value": since(began), "unit": "s"}
        sids = [f"stored-{number}" for number in random.Random(SEED).sample(range(size), min(lookups, size))]
        first_byte_us(port, sids[0])  # what the very first request costs is another cell
        found = quantiles([first_byte_us(port, sid) for sid in sids[1:]]) or {}
        case = f"{size:,} streams: resume, first byte"
        yield common | {"case": case, "value": found["p50"] / 1000, "unit": "ms p50", "us": found}
        rows = {"gateway": resident_mib(pid), "broker": on.broker.resident_mib()}
    for name, value in rows.items():
        yield common | {"case": f"{size:,} streams: memory of the {name}", "value": round(value), "unit": "MiB"}
    yield common | {"case": f"{size:,} streams: on disk", "value": round(on.broker.stored_mib()), "unit": "MiB"}


def since(began: float) -> float:
    return round(time.monotonic() - began, 2)
