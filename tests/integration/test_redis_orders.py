"""Any order of calls by programs of both releases of npm ``assistant-stream`` and by processes of both layouts, on one
stream: after each call, what Tailrace says of the stream is what npm's keys say."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tailrace.connect import StoreOptions, connect
from tailrace.errors import LeaseRequired, StreamEnded, StreamFinalized, StreamNotFound, StreamSuperseded
from tailrace.redis import RedisOptions
from tailrace.redis.runs import RedisRunQueue
from tailrace.store import LogStore
from tailrace.testing.redis_server import RedisServer

pytestmark = pytest.mark.slow

META, DATA = "aui:resumable:{a}:meta", "aui:resumable:{a}:data"
CALLS = ("acquire", "append", "append", "append", "finalize", "delete")
STEPS = 2500
Meta = dict[str, Any] | None


class Npm:
    """The commands of a release of npm's store, one by one: others' calls come between the two of an ending, too."""

    def __init__(self, store: LogStore, release: str, chance: random.Random) -> None:
        self._store, self._release, self._chance = store, release, chance

    async def ask(self, *words: Any) -> Any:
        assert isinstance(self._store.runs, RedisRunQueue)
        return await self._store.runs.ask(*words)

    async def meta(self) -> Meta:
        text = await self.ask("GET", META)
        return json.loads(text) if text else None

    def data(self, meta: Meta) -> str:
        generation = meta.get("generation") if meta is not None and self._release == "0.3.44" else None
        return f"{DATA}:{generation}" if generation else DATA

    async def _between(self) -> None:
        if self._chance.random() < 0.3:
            await self._store.status("a")

    async def call(self, name: str, number: int) -> None:
        meta = await self.meta()
        if name == "acquire":
            await self._acquire(number)
        elif name == "delete":
            await self.ask("DEL", META, DATA, self.data(meta))
        elif meta is not None and meta["status"] == "streaming":
            foreign = self._release == "0.3.15" and "generation" in meta  # it looks for the data where it is not
            if name == "append" and not foreign:
                await self.ask("XADD", self.data(meta), "*", "c", b"npm %d" % number)
                await self.ask("EXPIRE", self.data(meta), 1000)
            elif name == "finalize" and (not foreign or await self._is_known(meta)):
                await self._finalize(meta, whole=not foreign and self._chance.random() < 0.7)

    async def _is_known(self, meta: dict[str, Any]) -> bool:
        """Whether Tailrace knows the life that 0.3.15 is to end, and where its data is."""
        await self._store.status("a")
        return bool(await self.ask("EXISTS", f"{DATA}:{meta['generation']}"))

    async def _acquire(self, number: int) -> None:
        generation = {"generation": f"g{number}"} if self._release == "0.3.44" else {}
        text = json.dumps({"status": "streaming", "ttlSec": 1000, **generation})
        if await self.ask("SET", META, text, "NX", "EX", 1000) and not generation:
            await self._between()
            await self.ask("DEL", DATA)

    async def _finalize(self, meta: dict[str, Any], *, whole: bool) -> None:
        status, fields = "done", ["fin", "done"]
        said = {"status": status, "ttlSec": 1000}
        if self._chance.random() < 0.5:
            said = {"status": "error", "error": "half \ud83d", "ttlSec": 1000}
            fields = ["fin", "error", "error", "half \ufffd"]
        if self._release == "0.3.44" and "generation" in meta:
            said["generation"] = meta["generation"]
        await self.ask("SET", META, json.dumps(said), "EX", 1000)
        await self._between()
        if whole:
            await self.ask("XADD", self.data(meta), "*", *fields)


async def ours(store: LogStore, name: str, number: int, chance: random.Random) -> None:
    try:
        if name == "acquire":
            await store.acquire("a", ttl=1000.0)
        elif name == "append":
            await store.append("a", b"ours %d" % number)
        elif name == "finalize":
            await store.finalize("a", chance.choice(("done", "error")), "ours")
        else:
            await store.delete("a")
    except (StreamNotFound, StreamFinalized, StreamSuperseded, LeaseRequired):
        pass


async def compare(store: LogStore, look: Npm) -> None:
    info = await store.status("a")
    meta = await look.meta()
    assert info.status.seed == (meta["status"] if meta else "missing")
    if meta is None:
        return
    wanted = []
    for _, flat in await look.ask("XRANGE", look.data(meta), "-", "+"):
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if b"fin" in fields:
            break
        wanted += [fields[b"c"]] if b"c" in fields else []
    assert info.entries == len(wanted)
    if meta["status"] != "streaming":
        got = []
        try:
            async for entry in store.read("a"):
                got.append(entry.chunk)
        except StreamEnded:
            pass
        assert got == wanted


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as running:
        yield running


@pytest.fixture
async def stores(server: RedisServer) -> AsyncIterator[list[LogStore]]:
    opened = []
    for layout in ("0.3.44", "0.3.15", "0.3.44"):
        options = StoreOptions(lease_ttl=60.0, linger=0.0, redis=RedisOptions(layout=layout))
        opened.append(await connect(server.url, options))
    yield opened
    for store in opened:
        await store.aclose()


@pytest.mark.parametrize("seed", range(3))
async def test_any_order_of_calls(stores: list[LogStore], seed: int) -> None:
    chance = random.Random(seed)
    programs = [Npm(stores[2], release, chance) for release in ("0.3.44", "0.3.15")]
    told: list[str] = []
    try:
        async with asyncio.timeout(120):
            for number in range(STEPS):
                name, which = chance.choice(CALLS), chance.randrange(4)
                told.append(f"{number} {which} {name}")
                if name == "acquire":  # npm's ids are milliseconds: two lives within one cannot be told apart
                    await asyncio.sleep(0.002)
                if which < 2:
                    await programs[which].call(name, number)
                else:
                    await ours(stores[which - 2], name, number, chance)
                if chance.random() < 0.8:
                    await compare(chance.choice(stores), programs[0])
    except (AssertionError, TimeoutError) as error:
        error.add_note(f"seed {seed}: {told[-20:]}")
        raise
