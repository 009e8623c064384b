"""The heartbeats of a member: they go on whatever becomes of one, and stop at a close."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tailrace import tasks
from tailrace.errors import BrokerUnavailable
from tailrace.members import Membership
from tailrace.memory import MemoryBeats, MemoryBroker

PATIENCE = 30


class Lossy(MemoryBeats):
    """Every beat but each fourth one is lost: its answer never comes, as where a broker loses its leader."""

    sent = 0

    async def send(self, member_id: str, payload: bytes) -> None:
        self.sent += 1
        if self.sent % 4:
            await asyncio.Event().wait()
        await super().send(member_id, payload)


class Failing(MemoryBeats):
    sent = 0

    async def send(self, member_id: str, payload: bytes) -> None:
        self.sent += 1
        raise (BrokerUnavailable("away") if self.sent % 2 else ValueError("a fault"))


@pytest.mark.parametrize("turns", range(5))
async def test_a_member_stops_however_close_to_its_next_beat(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_AGAIN", 600.0)  # at the first cancellation
    member = Membership(MemoryBeats(MemoryBroker()), 60.0)
    await member.start()
    await asyncio.sleep(0.3)  # it waits for its next beat
    member.advertise({}, lambda: 0)
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await member.close()


async def test_beats_go_on_though_the_broker_lost_some() -> None:
    broker = MemoryBroker()
    beats = Lossy(broker)
    member, observer = Membership(beats, 10.0), Membership(MemoryBeats(broker), 10.0)
    member.interval = observer.interval = 0.05  # the lease is long: a machine that stalls loses nobody
    await observer.start()
    await member.start()
    async with asyncio.timeout(PATIENCE):
        while observer._numbers.get(member.id, 0) < 12:  # three of which were stored
            await asyncio.sleep(0.01)
        assert not observer.is_lost(member.id)
        beats.sent = 3  # the goodbye is stored
        await member.close()
        while not observer.is_lost(member.id):
            await asyncio.sleep(0.01)
        await observer.close()
    assert not member._unanswered


async def test_beats_go_on_though_they_fail(caplog: pytest.LogCaptureFixture) -> None:
    beats = Failing(MemoryBroker())
    member = Membership(beats, 10.0)
    member.interval = 0.01
    await member.start()
    async with asyncio.timeout(PATIENCE):
        while beats.sent < 6:
            await asyncio.sleep(0.01)
        await member.close()
    told = [record for record in caplog.records if record.name == "tailrace.members"]
    assert {record.getMessage() for record in told} == {"a heartbeat failed"}  # an absence is no news
    assert all(record.levelno == logging.ERROR for record in told)
