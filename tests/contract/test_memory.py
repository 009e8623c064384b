"""The memory store against the contract kit."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tailrace.memory import CAPABILITIES, MemoryBroker, MemoryStore
from tailrace.model import Limits
from tailrace.testing import MakeStore, StoreContract


class MovedClock:
    """Time that stands still until a test moves it."""

    ttl = 60.0
    still = True

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000
        self.stores: list[MemoryStore] = []

    async def advance(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        for store in self.stores:
            await store.collect()


class TestMemory(StoreContract):
    capabilities = CAPABILITIES

    @pytest.fixture
    def clock(self) -> MovedClock:
        return MovedClock()

    @pytest_asyncio.fixture
    async def make_store(self, clock: MovedClock) -> AsyncIterator[MakeStore]:  # type: ignore[override]
        broker = MemoryBroker(now=lambda: clock.now_ms)

        async def make(limits: Limits | None = None) -> MemoryStore:
            store = MemoryStore(limits, broker=broker)
            clock.stores.append(store)
            return store

        yield make
        for store in clock.stores:
            await store.aclose()
