"""Ending tasks whose cancellation gets lost, as Python 3.11's `wait_for` loses it (python/cpython#86296)."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tailrace import tasks
from tailrace.members import Membership
from tailrace.memory import MemoryBeats, MemoryBroker


async def test_a_task_that_misses_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_AGAIN", 0.01)
    missed = 0

    async def work() -> None:
        nonlocal missed
        while missed < 3:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            missed += 1
        await asyncio.Event().wait()

    several = [asyncio.create_task(work()), asyncio.create_task(asyncio.sleep(0))]
    await asyncio.sleep(0)
    await tasks.end(*several)
    assert all(task.done() for task in several)
    assert missed == 3
    await tasks.end()


@pytest.mark.parametrize("turns", range(5))
async def test_a_member_stops_however_close_to_its_next_beat(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_AGAIN", 600.0)  # at the first cancellation
    member = Membership(MemoryBeats(MemoryBroker()), 60.0)
    await member.start()
    await asyncio.sleep(0.3)  # it waits for its next beat
    member.advertise({}, lambda: 0)
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await member.close()
