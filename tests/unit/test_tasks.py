"""Ending tasks whose cancellation gets lost, as Python 3.11's `wait_for` loses it (python/cpython#86296)."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tailrace import tasks


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
