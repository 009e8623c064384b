"""Every test of the client runs twice: over asyncio, and without it (in threads, so that servers of the test go on)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tailrace.client import AsyncClient, Client

_OVER = object()


class Speech:
    """One way to call a client: ``await call(answer.read)``, ``async for part in each(answer.bytes())``."""

    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async

    @asynccontextmanager
    async def client(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        if self.is_async:
            async with AsyncClient(*arguments, **options) as client:
                yield client
        else:
            with Client(*arguments, **options) as blocking:
                yield blocking

    async def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self.is_async:
            return await function(*arguments, **options)
        return await asyncio.to_thread(function, *arguments, **options)

    async def each(self, iteration: Any) -> AsyncIterator[Any]:
        if self.is_async:
            try:
                async for one in iteration:
                    yield one
            finally:
                await iteration.aclose()
            return
        try:
            while (one := await asyncio.to_thread(next, iteration, _OVER)) is not _OVER:
                yield one
        finally:
            await asyncio.to_thread(iteration.close)


@pytest.fixture(params=["async", "sync"])
def speech(request: pytest.FixtureRequest) -> Speech:
    return Speech(request.param == "async")
