"""A worker in a process of its own: says its member's id when it is ready, and ends on SIGTERM.

Its arguments are the URL, the lease in seconds, the slots, and the seconds that a drain may take.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

from worker_deployment import Nothing, store_options

from tailrace.connect import connect
from tailrace.worker import Worker, handler


@handler("slow", input=Nothing)
async def slow(input: Nothing) -> AsyncIterator[str]:
    yield "begun"
    await asyncio.sleep(3600)


@handler("brief", input=Nothing)
async def brief(input: Nothing) -> AsyncIterator[str]:
    yield "begun"
    await asyncio.sleep(1)
    yield " and ended"


@handler("ticks", input=Nothing)
async def ticks(input: Nothing) -> AsyncIterator[str]:
    while True:
        yield "tick "
        await asyncio.sleep(0.1)


async def main(url: str, lease_ttl: str, slots: str, drain: str) -> None:
    store = await connect(url, store_options(float(lease_ttl)))
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with store, Worker(store, [slow, brief, ticks], slots=int(slots), drain_timeout=float(drain)):
        print(store.members.id, flush=True)
        await over.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
