"""The producing process of the benchmark: one store, its leases, and the chunks.

Whoever measures (the suite's adapter, producer.py, cells.py) asks it over a loopback port, one JSON object a line:

    {"op": "create", "sids": [...]}    acquire each stream, keep its lease       -> {"ok": true}
    {"op": "close", "sids": [...]}     finalize each stream as done              -> {"ok": true}
    {"op": "produce", "sids": [...], "seq0": 0, "size": 60, "rate": 50, "n": 100, "maxms": 0, "t0": 0, ...}
                                       -> "READY k" at once, then the result as one JSON line

Rules that keep the numbers honest:
- A chunk is stamped where it is emitted, in this process, straight before it is handed to the store.
- The schedule is absolute: stream i of k begins i/k of a period late, and a chunk emitted late says by how much.
- Only an acknowledged chunk is counted. Nothing in flight is ever cancelled: a stop ends emission and waits for acks.
- rate 0 emits as fast as acks allow: each stream has `window` calls in flight, of `batch` chunks each.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import uvloop

from tailrace.connect import connect

MAX_OUTSTANDING = 4096  # paced chunks not yet acknowledged, over all streams of one produce


def now_us() -> int:
    return time.monotonic_ns() // 1000


def cpu_us() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return int((usage.ru_utime + usage.ru_stime) * 1e6)


def chunk(seq: int, lag: int, pad: bytes) -> bytes:
    return b"@%016d;%07d;%07d;" % (now_us(), min(lag, 9_999_999), seq) + pad


def quantiles(values: list[int]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)

    def at(p: float) -> int:
        return ordered[round(p * (len(ordered) - 1))]

    mean = round(sum(ordered) / len(ordered), 1)
    return {"n": len(ordered), "mean": mean, "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": ordered[-1]}


class Timer:
    """Sleeps until an absolute CLOCK_MONOTONIC microsecond.

    An event loop's own timers have milliseconds, which would bunch 100 streams x 50/s into bursts of five.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)
        self._spec = (ctypes.c_long * 4)()
        self._waiter: asyncio.Future[None] | None = None
        asyncio.get_running_loop().add_reader(self._fd, self._fired)

    async def until(self, due: int) -> None:
        self._spec[2], self._spec[3] = due // 1_000_000, due % 1_000_000 * 1000
        self._waiter = asyncio.get_running_loop().create_future()
        self._libc.timerfd_settime(self._fd, 1, ctypes.byref(self._spec), None)
        await self._waiter

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self.wake()


@dataclass
class Order:
    """What a produce asks for; the fields are those of the suite's `append` command line."""

    sids: list[str]
    size: int = 60
    rate: float = 0.0
    n: int = 0
    maxms: int = 0
    t0: int = 0
    seq0: int = 0
    timeout: int = 120_000
    batch: int = 64
    window: int = 2


@dataclass
class Production:
    """One produce: its counters and the two ways to emit."""

    store: Any
    leases: dict[str, Any]
    order: Order
    stopped: bool = False
    sent: int = 0
    last: int = 0
    errors: list[str] = field(default_factory=list)
    acks: list[int] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * len(self.order.sids)
        self.emitted = [0] * len(self.order.sids)
        self.pad = b"x" * (self.order.size - 35) + b"|"
        self.timer = Timer()
        self.start = self.t0 = 0

    def stop(self) -> None:
        self.stopped = True
        self.timer.wake()

    async def run(self) -> dict[str, Any]:
        self.start, cpu = now_us(), cpu_us()
        self.t0 = self.order.t0 or self.start
        try:
            await (self._paced() if self.order.rate > 0 else self._unpaced())
        finally:
            self.timer.close()
        return {
            "engine": "tailrace",
            "streams": len(self.counts),
            "sent": self.sent,
            "acked": sum(self.counts),
            "errors": len(self.errors),
            "first_error": self.errors[0] if self.errors else None,
            "counts": self.counts,
            "ack": quantiles(self.acks),
            "lag": quantiles(self.lags),
            "t0_us": self.t0,
            "t_last_us": self.last,
            "wall_us": now_us() - self.start,
            "cpu_us": cpu_us() - cpu,
        }

    def _over(self) -> bool:
        now = now_us()
        late = self.order.maxms and now - self.t0 > self.order.maxms * 1000
        return bool(self.stopped or late or now - self.start > self.order.timeout * 1000)

    async def _settle(self, stream: int, amount: int, at: int, call: Any) -> bool:
        """Await one append or extend; only its return counts its chunks."""
        try:
            await call
        except Exception as error:  # noqa: BLE001 - a failed append is a result of the benchmark
            self.errors.append(f"{type(error).__name__}: {error}"[:300])
            return False
        self.last = now_us()
        self.acks.append(self.last - at)
        self.counts[stream] += amount
        return True

    async def _paced(self) -> None:
        order, streams = self.order, len(self.order.sids)
        period = 1e6 / order.rate
        pending: set[asyncio.Task[bool]] = set()
        event = 0
        while not self._over() and (not order.n or event < order.n * streams):
            stream, turn = event % streams, event // streams
            due = self.t0 + int(period * stream / streams + period * turn)
            if due > now_us():
                await self.timer.until(due)
                continue
            if len(pending) >= MAX_OUTSTANDING:
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                continue
            sid, at = order.sids[stream], now_us()
            lag = at - due
            call = self.store.append(sid, chunk(order.seq0 + turn, lag, self.pad), lease=self.leases[sid])
            task = asyncio.ensure_future(self._settle(stream, 1, at, call))
            pending.add(task)
            task.add_done_callback(pending.discard)
            self.lags.append(lag)
            self.sent += 1
            event += 1
            await asyncio.sleep(0)  # however late it is, the append starts before the next chunk is made
        if pending:
            await asyncio.wait(pending, timeout=order.timeout / 1000)

    async def _unpaced(self) -> None:
        if self.order.t0 > now_us():
            await self.timer.until(self.order.t0)
        lanes = [self._lane(i) for i in range(len(self.order.sids)) for _ in range(self.order.window)]
        await asyncio.gather(*lanes)

    async def _lane(self, stream: int) -> None:
        """Lanes of one stream share its sequence: a batch is stamped and handed over without a pause between."""
        order, sid = self.order, self.order.sids[stream]
        lease = self.leases[sid]
        while not self._over():
            first = self.emitted[stream]
            size = min(order.batch, order.n - first) if order.n else order.batch
            if size <= 0:
                return
            self.emitted[stream] += size
            self.sent += size
            at = now_us()
            chunks = [chunk(order.seq0 + first + i, 0, self.pad) for i in range(size)]
            if size == 1:
                call = self.store.append(sid, chunks[0], lease=lease)
            else:
                call = self.store.extend(sid, chunks, lease=lease)
            if not await self._settle(stream, size, at, call):
                return


class Agent:
    """Serves the line protocol. Leases live as long as the process."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.leases: dict[str, Any] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(line: str) -> None:
            writer.write(line.encode() + b"\n")

        try:
            while line := await reader.readline():
                request = json.loads(line)
                op = request.pop("op")
                if op == "produce":
                    await self._produce(Order(**request), reader, say)
                    return
                say(json.dumps(await self._ask(op, request["sids"])))
        except ConnectionError:
            pass  # the one who asked has gone: nobody to tell
        finally:
            writer.close()

    async def _ask(self, op: str, sids: list[str]) -> dict[str, Any]:
        try:
            await asyncio.gather(*({"create": self._create, "close": self._close}[op](sid) for sid in sids))
        except Exception as error:  # noqa: BLE001 - told to the one who asked
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}
        return {"ok": True}

    async def _create(self, sid: str) -> None:
        lease = (await self.store.acquire(sid)).lease
        if lease is None:
            raise RuntimeError(f"{sid} already has a producer")
        self.leases[sid] = lease

    async def _close(self, sid: str) -> None:
        await self.store.finalize(sid, "done", lease=self.leases.pop(sid))

    async def _produce(self, order: Order, reader: asyncio.StreamReader, say: Callable[[str], None]) -> None:
        production = Production(self.store, self.leases, order)
        say(f"READY {len(order.sids)}")
        work = asyncio.create_task(production.run())

        async def until_told() -> None:  # any further line, or the end of the connection, means stop
            await reader.readline()
            production.stop()

        told = asyncio.create_task(until_told())
        say(json.dumps(await work))
        told.cancel()


async def main() -> None:
    options = argparse.ArgumentParser(description="The benchmark's producing process")
    options.add_argument("--store", required=True)
    options.add_argument("--port", required=True, type=int)
    args = options.parse_args()
    async with await connect(args.store) as store:
        server = await asyncio.start_server(Agent(store).serve, "127.0.0.1", args.port, limit=2**22)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
