"""Handlers that write a state: object streams over HTTP, live, resumed at another gateway, and with each ending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from tailrace.message.dialect import LEGACY, NEWEST
from tailrace.message.object_controller import ObjectChunk, ObjectStreamController
from tailrace.wire.object_stream import HEADERS, STATES
from tailrace.worker import Controller, InvalidHandler, Pace, RunContext, StateController, handler


class City(BaseModel):
    name: str = "Oslo"


class Forecast:
    """Writes a state in two halves; the second waits to be let on."""

    def __init__(self) -> None:
        self.half, self.open = asyncio.Event(), asyncio.Event()

        @handler("forecast", headers={"x-kind": "state"})
        async def forecast(input: City, state: StateController, run: RunContext) -> None:
            state.set(["city"], input.name)
            state.set(["days"], [{"max": 18}])
            await state.drain()
            self.half.set()
            await self.open.wait()
            state.append_text(["city"], f" for {run.format}")
            state.enqueue([{"type": "set", "path": ["days", "1"], "value": {"max": 21}}])

        self.handler = forecast


def states(format: str, body: bytes) -> list[ObjectChunk]:
    decoder = STATES[format].decoder()
    return [*decoder.feed(body), *decoder.close()]


@pytest.mark.parametrize("format", sorted({one.name for one in STATES.values()}))
async def test_a_state_is_live_and_resumed_at_another_gateway(serve: Any, format: str) -> None:
    forecast = Forecast()
    service = await serve(forecast.handler)
    await service.accept("forecast", {"name": "Bern"}, id="a", format=format)
    await forecast.half.wait()
    reading = asyncio.create_task(service.body("a"))
    forecast.open.set()
    body, headers = await reading
    assert states(format, body)[-1].snapshot == {"city": f"Bern for {format}", "days": [{"max": 18}, {"max": 21}]}
    assert headers["content-type"] == HEADERS["Content-Type"]
    assert headers["assistant-stream-format"] == "object-stream/v0"
    assert headers["x-kind"] == "state"
    assert (await service.body("a", offset=len(body) // 2))[0] == body[len(body) // 2 :]
    encoder = STATES[format].encoder()
    made: list[ObjectChunk] = []
    alone = StateController(made.append, dialect=LEGACY if format.endswith(LEGACY) else NEWEST)
    run = RunContext("a", "forecast", format=format)
    await forecast.handler(City(name="Bern"), alone, run)
    assert b"".join(map(encoder.encode, made)) == body
    assert (await service.status("a"))["status"] == "done"


async def test_an_object_stream_is_what_a_state_is_written_in(serve: Any) -> None:
    forecast = Forecast()
    forecast.open.set()

    @handler("words")
    async def words(input: City, controller: Controller) -> None:
        controller.append_text(input.name)

    service = await serve(forecast.handler, words)
    body = (await service.run("forecast")).content
    assert states("object-stream", body)[-1].snapshot["city"].endswith("object-stream")  # type: ignore[index,call-overload]
    for name, format in (("forecast", "data-stream"), ("forecast", "bytes"), ("words", "object-stream")):
        refused = await service.run(name, id="b", format=format)
        assert (refused.status_code, refused.json()["code"]) == (422, "unknown-format"), refused.text
    assert (await service.run("words", id="b", format="object-stream; v=0.3.44")).status_code == 422
    assert (await service.run("words", id="b")).status_code == 200


async def test_what_was_written_stays_however_it_ends(serve: Any) -> None:
    written = asyncio.Event()

    @handler("fails")
    async def fails(input: City, state: ObjectStreamController) -> None:
        state.set(["a"], 1)
        state.append_text(["a"], "no string")

    @handler("waits")
    async def waits(input: City, state: StateController) -> None:
        state.set(["a"], 1)
        await state.drain()
        written.set()
        await asyncio.Event().wait()

    @handler("hog")
    async def hog(input: City, state: StateController) -> None:
        for _ in range(1000):
            state.set(["a"], "x" * 100)

    service = await serve(fails, waits, hog, pace=Pace(max_pending_bytes=5000, stop_timeout=0.2))
    await service.accept("fails", id="failed")
    await service.accept("waits", id="cancelled")
    await service.accept("hog", id="refused")
    await written.wait()
    assert (await service.client.post("/v1/runs/cancelled/cancel")).is_success
    for name, code in (("failed", "handler-error"), ("cancelled", "cancelled"), ("refused", "too-much-pending")):
        body, _ = await service.body(name)
        assert states("object-stream", body)[0].snapshot == {"a": 1 if name != "refused" else "x" * 100}
        assert (await service.status(name))["code"] == code


def test_one_writer_a_handler() -> None:
    async def both(input: City, state: StateController, controller: Controller) -> None: ...

    async def yields(input: City, state: StateController) -> AsyncIterator[str]:
        yield ""

    for function in (both, yields):
        with pytest.raises(InvalidHandler):
            handler()(function)
