"""The Redis store on real servers: what idle readers cost, what keeps through a kill, what is refused, Sentinel."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailrace._ports import choose_port
from tailrace.connect import StoreOptions, connect
from tailrace.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    BrokerUnsuitable,
    StorageFull,
    StreamExpired,
    StreamTrimmed,
    TooManyStreams,
    UnknownScheme,
)
from tailrace.model import Limits, Role, Status
from tailrace.redis import RedisOptions
from tailrace.redis.address import parse
from tailrace.redis.broker import Redis, open_redis
from tailrace.redis.runs import RedisRunQueue
from tailrace.redis.setup import check_server
from tailrace.settings import load
from tailrace.store import LogStore
from tailrace.testing.redis_server import RedisSentinels, RedisServer

PATIENCE = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as running:
        yield running


@pytest.fixture
async def broker(server: RedisServer) -> AsyncIterator[Redis]:
    opened = await open_redis(server.url)
    yield opened
    await opened.close()


async def opened(url: str, **options: Any) -> LogStore:
    return await connect(url, StoreOptions(**{"lease_ttl": 1.0, "linger": 0.0} | options))


async def content(store: LogStore, stream_id: str) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return b"".join([entry.chunk async for entry in store.read(stream_id)])


async def ask(store: LogStore, *words: Any) -> Any:
    assert isinstance(store.runs, RedisRunQueue)
    return await store.runs.ask(*words)


# ---------------------------------------------------------------- what idle readers cost


async def costs(broker: Redis) -> tuple[float, dict[str, int]]:
    """The server's clock in seconds, and how often each command was called."""
    seconds, micros = await broker.connection.call("TIME")
    text = (await broker.connection.call("INFO", "commandstats")).decode()
    calls = re.findall(r"^cmdstat_([^:]+):calls=(\d+)", text, re.MULTILINE)
    return int(seconds) + int(micros) / 1e6, {name: int(count) for name, count in calls}


async def test_a_hundred_idle_readers_cost_one_blocked_read(server: RedisServer, broker: Redis) -> None:
    async with await opened(server.url, lease_ttl=10.0) as store, await opened(server.url, lease_ttl=10.0) as gateway:
        readers = []
        for number in range(50):
            await store.acquire(f"s{number}")
            await store.append(f"s{number}", b"x")
            readers += [await gateway.open(f"s{number}") for _ in range(2)]
        for reader in readers:
            assert reader.take_bytes() == b"x"
        await asyncio.sleep(3)  # the first beats come quickly
        began, before = await costs(broker)
        beats = await broker.connection.call("XLEN", broker.names.beats)
        await asyncio.sleep(4)
        ended, after = await costs(broker)
        beats = await broker.connection.call("XLEN", broker.names.beats) - beats
        spent = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
        seconds = ended - began
        # each of the two processes reads once a second, and once more for each beat that it hears
        assert spent.pop("xread") <= 2 * (seconds + 1) + 2 * (beats + 1), spent
        assert spent.pop("mget") <= seconds + 2, spent  # only the gateway follows streams
        for name in ("info", "time", "xlen"):
            spent.pop(name, None)
        # what is left is heartbeats: a script with three commands
        assert set(spent) <= {"evalsha", "pexpire", "xadd"}, spent
        assert all(count <= beats + 2 for count in spent.values()), spent
        for number in range(50):
            await store.append(f"s{number}", b"y")
        for reader in readers:
            async with asyncio.timeout(PATIENCE):
                while not (got := reader.take_bytes()):
                    await reader.wait()
            assert got == b"y"
            reader.close()


# ---------------------------------------------------------------- what is kept


async def test_a_killed_server_comes_back_with_all_that_was_acknowledged(server: RedisServer) -> None:
    async with await opened(server.url) as store, await opened(server.url) as other:
        lease = (await store.acquire("a")).lease
        acknowledged = 0
        reading = asyncio.create_task(content(other, "a"))
        for round_ in range(3):
            for number in range(50):
                await store.append("a", b"%d.%d;" % (round_, number), lease)
                acknowledged += 1
            pending = asyncio.create_task(store.append("a", b"over the kill %d;" % round_, lease))
            server.kill()
            await asyncio.sleep(0.2)
            server.start()
            await asyncio.wait_for(pending, PATIENCE)
            acknowledged += 1
        await store.finalize("a", "done")
        whole = await reading
        assert whole.count(b";") == acknowledged
        assert await content(store, "a") == whole


async def test_a_paused_server_is_waited_for(server: RedisServer) -> None:
    options = {"redis": RedisOptions(request_timeout=3.0)}
    async with await opened(server.url, **options) as store, await opened(server.url, **options) as other:
        lease = (await store.acquire("a")).lease
        await store.append("a", b"before ", lease)
        reading = other.read("a")
        assert (await anext(reading)).chunk == b"before "
        server.pause()
        pending = asyncio.create_task(store.append("a", b"during ", lease))
        await asyncio.sleep(4.5)  # longer than a request may take
        assert not pending.done()
        server.resume()
        await asyncio.wait_for(pending, PATIENCE)
        await store.append("a", b"after", lease)
        await store.finalize("a", "done")
        async with asyncio.timeout(PATIENCE):
            assert [entry.chunk async for entry in reading] == [b"during ", b"after"]


async def test_a_server_that_forgot_everything_trims(tmp_path: Path) -> None:
    """Without an append-only file: the store says so, and no reader is told that what it had is all."""
    with RedisServer(tmp_path / "redis", config="appendonly no") as server:
        async with await opened(server.url) as store:
            assert not store.capabilities.durable
            lease = (await store.acquire("a")).lease
            await store.append("a", b"x", lease)
            reading = store.read("a")
            assert (await anext(reading)).chunk == b"x"
            server.restart()
            with pytest.raises(StreamTrimmed):
                await asyncio.wait_for(anext(reading), PATIENCE)
            with pytest.raises(StreamTrimmed):
                await asyncio.wait_for(store.append("a", b"y", lease), PATIENCE)


async def test_a_life_of_npms_without_a_chunk_leaves_a_free_id(server: RedisServer) -> None:
    async with await opened(server.url) as store:
        for round_ in range(3):
            await ask(store, "SET", "aui:resumable:{a}:meta", '{"status":"streaming","ttlSec":100}', "EX", 100)
            assert (await store.status("a")).status is Status.STREAMING
            await ask(store, "DEL", "aui:resumable:{a}:meta")
            lease = (await asyncio.wait_for(store.acquire("a"), PATIENCE)).lease
            await store.append("a", b"%d" % round_, lease)
            assert await store.delete("a")


class Line:
    """A way to a server that can be cut."""

    def __init__(self, server: RedisServer) -> None:
        self._server, self._cut, self._ends = server, False, set[asyncio.StreamWriter]()

    async def start(self) -> str:
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        back, forth = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._ends |= {writer, forth}
        await asyncio.gather(self._pass(reader, forth), self._pass(back, writer))

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                to.write(data)
        to.transport.abort()

    def cut(self, cut: bool) -> None:
        self._cut = cut
        while cut and self._ends:
            self._ends.pop().transport.abort()

    def close(self) -> None:
        self.cut(True)
        self._listening.close()


@pytest.mark.parametrize("ends", [False, True])
async def test_who_was_away_while_a_stream_went_on_and_expired(server: RedisServer, ends: bool) -> None:
    line = Line(server)
    url = await line.start()
    async with await opened(server.url) as store, await opened(url) as away:
        lease = (await store.acquire("a", ttl=3.0)).lease
        await store.append("a", b"x", lease)
        reading = away.read("a")
        assert (await anext(reading)).chunk == b"x"
        line.cut(True)
        await store.append("a", b"unread", lease)
        if ends:
            await store.finalize("a", "done", None, lease)
        async with asyncio.timeout(PATIENCE):
            while (await store.status("a")).status is not Status.EXPIRED:
                await asyncio.sleep(0.05)
        keys = await ask(store, "KEYS", "aui:resumable:{a}:data*")
        assert await ask(store, "DEL", *keys) == 1  # as a while later
        line.cut(False)
        with pytest.raises(StreamExpired):
            await asyncio.wait_for(anext(reading), PATIENCE)
    line.close()


async def test_long_streams_and_large_records_are_read_in_pages(server: RedisServer) -> None:
    async with await opened(server.url) as store, await opened(server.url) as other:
        lease = (await store.acquire("a")).lease
        wanted = [b"%d;" % number for number in range(2500)]
        await store.extend("a", wanted, lease)  # one record
        for chunk in wanted[:1200]:
            await store.append("a", chunk, lease)
        await store.extend("a", [b"x" * 200_000] * 60, lease)
        await store.finalize("a", "done")
        assert await content(other, "a") == b"".join(wanted + wanted[:1200]) + b"x" * 12_000_000


async def test_prefixes_do_not_meet(server: RedisServer) -> None:
    async with (
        await opened(server.url, redis=RedisOptions(prefix="one")) as first,
        await opened(server.url, redis=RedisOptions(prefix="one:two")) as second,
    ):
        await first.acquire("a")
        assert (await second.status("a")).status is Status.MISSING
        assert [info.stream_id async for info in first.streams()] == ["a"]
        assert [info.stream_id async for info in second.streams()] == []


# ---------------------------------------------------------------- what is refused


async def refusal(url: str, kind: type[BrokerError], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        await open_redis(url, RedisOptions(**{"connect_timeout": 10.0} | options))
    text = str(caught.value)
    assert "\n" not in text
    assert "s3cret" not in text
    assert caught.value.hint
    return text


async def test_nobody_there() -> None:
    assert "Cannot reach Redis at 127.0.0.1:1:" in await refusal("redis://:s3cret@127.0.0.1:1", BrokerUnavailable)


async def test_something_else_there(server: RedisServer) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        with pytest.raises(BrokerError) as caught:
            await open_redis(f"redis://127.0.0.1:{port}", RedisOptions(connect_timeout=2.0))
        assert f"127.0.0.1:{port}" in str(caught.value)


async def test_silence_there() -> None:
    held: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    listening = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    with pytest.raises(BrokerUnavailable, match=r"no answer in 0\.5 s"):
        await open_redis(f"redis://127.0.0.1:{port}", RedisOptions(connect_timeout=0.5, request_timeout=0.5))
    for writer in held:
        writer.close()
    listening.close()


async def test_a_login_is_needed_and_must_be_right(tmp_path: Path) -> None:
    rules = "requirepass s3cret\nuser worker on >pass/word ~* &* +@all\nuser mute on >mute ~* &* -@all +ping\n"
    with RedisServer(tmp_path / "redis", config=rules) as server:
        at = f"127.0.0.1:{server.port}"
        assert "refused the login" in await refusal(server.url, BrokerRefused)
        assert "refused the login" in await refusal(f"redis://:wrong-s3cret@{at}", BrokerRefused)
        assert "forbids" in await refusal(f"redis://mute:mute@{at}", BrokerRefused)
        for url, options in (
            (f"redis://:s3cret@{at}", {}),
            (f"redis://worker:pass%2Fword@{at}/3", {}),
            (server.url, {"user": "worker", "password": "pass/word"}),
        ):
            async with await opened(url, redis=RedisOptions(**options)) as store:
                await store.acquire("a")


async def test_what_a_user_may_not_do_is_told_at_the_start(tmp_path: Path) -> None:
    users = {"scripts": "+@all -@scripting", "adds": "+@all -xadd -sadd", "least": "+ping +info +time +eval +evalsha"}
    rules = "".join(f"user {name} on >s3cret ~aui:* &* {rights}\n" for name, rights in users.items())
    with RedisServer(tmp_path / "redis", config=f"{rules}user keys on >s3cret ~other:* &* +@all\n") as server:
        at = f"s3cret@127.0.0.1:{server.port}"
        assert "evalsha" in await refusal(f"redis://scripts:{at}", BrokerRefused)
        assert "forbids what Tailrace needs: SADD, XADD" in await refusal(f"redis://adds:{at}", BrokerRefused)
        assert "XREADGROUP" in await refusal(f"redis://least:{at}", BrokerRefused)
        assert "keys" in await refusal(f"redis://keys:{at}", BrokerRefused)
        await (await open_redis(f"redis://keys:{at}?prefix=other:x")).close()
        assert server.ask("KEYS", "*") == b"*0\r\n"  # trying left nothing behind


async def test_commands_that_are_renamed_are_told_at_the_start(tmp_path: Path) -> None:
    for name, config in (("INFO", "info"), ("EVALSHA", "evalsha"), ("XADD", "xadd"), ("SCAN", "scan")):
        with RedisServer(tmp_path / name, config=f'rename-command {config} ""') as server:
            kind = BrokerUnsuitable if name in ("INFO", "EVALSHA") else BrokerRefused
            assert name in await refusal(server.url, kind)


async def test_a_server_that_takes_no_writes_now_is_opened_all_the_same(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", config="min-replicas-to-write 1") as server:
        await (await open_redis(server.url)).close()
    with RedisServer(tmp_path / "full", config="maxmemory 1mb") as server:
        await (await open_redis(server.url)).close()


async def test_tls_files_that_cannot_be_used(server: RedisServer, tmp_path: Path) -> None:
    at = f"rediss://127.0.0.1:{server.port}"
    (tmp_path / "file").write_text("nothing of the kind")
    assert "tls_ca cannot be read: /nonexistent" in await refusal(f"{at}?tls_ca=/nonexistent", BrokerRefused)
    assert "TLS files cannot be used" in await refusal(f"{at}?tls_cert={tmp_path}/file", BrokerRefused)
    assert "without tls_cert" in await refusal(f"{at}?tls_key={tmp_path}/file", BrokerRefused)


def certified(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    making += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(making, check=True, capture_output=True)
    return certificate, key


async def test_a_server_that_asks_for_a_clients_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = certified(tmp_path)
    files = f"tls-cert-file {certificate}\ntls-key-file {key}\ntls-ca-cert-file {certificate}\n"
    port = choose_port(None, None)

    def settings(**changes: Path) -> RedisOptions:
        for name, value in changes.items():
            monkeypatch.setenv(f"TAILRACE_REDIS_{name}", str(value))
        chosen = load(None).store_options().redis
        assert chosen is not None
        return replace(chosen, connect_timeout=10.0)

    url = f"rediss://127.0.0.1:{port}"
    with RedisServer(tmp_path / "redis", config=f"{files}tls-port {port}\ntls-auth-clients yes"):
        none = settings(TLS_CA=certificate)
        strange, strange_key = certified(tmp_path / "strange")
        wrong = settings(TLS_CERT=strange, TLS_KEY=strange_key)
        for options in (none, wrong):  # it says so, and closes: the client may meet the one or the other
            with pytest.raises((BrokerRefused, BrokerUnavailable), match=f"127.0.0.1:{port}") as caught:
                await open_redis(url, options)
            assert "tls_cert" in caught.value.hint
        async with await opened(url, redis=settings(TLS_CERT=certificate, TLS_KEY=key)) as store:
            await store.acquire("a")
            await store.append("a", b"x")


async def test_tls(tmp_path: Path) -> None:
    certificate, key = certified(tmp_path)
    port = choose_port(None, None)
    plain = RedisServer(
        tmp_path / "redis",
        config=f"tls-cert-file {certificate}\ntls-key-file {key}\ntls-auth-clients no\ntls-port {port}\n",
    )
    with plain as server:
        async with await opened(f"rediss://127.0.0.1:{port}", redis=RedisOptions(tls_ca=str(certificate))) as store:
            await store.acquire("a")
            await store.append("a", b"x")
        assert "TLS" in await refusal(f"rediss://127.0.0.1:{port}", BrokerRefused)  # an unknown authority
        brief = {"connect_timeout": 2.0}  # one waits for the other
        assert "does it speak TLS?" in await refusal(f"rediss://127.0.0.1:{server.port}", BrokerUnavailable, **brief)
        await refusal(f"redis://127.0.0.1:{port}", BrokerUnavailable, **brief)


async def test_a_replica_and_a_sentinel_are_no_masters(tmp_path: Path, server: RedisServer) -> None:
    with RedisServer(tmp_path / "replica", config=f"replicaof 127.0.0.1 {server.port}") as replica:
        assert "read-only replica" in await refusal(replica.url, BrokerUnsuitable)
    with RedisServer(tmp_path / "sentinel", arguments=("--sentinel",), settings="") as sentinel:
        assert "is a Sentinel" in await refusal(sentinel.url, BrokerUnsuitable)
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/nobody"
        assert "No master found for 'nobody' by the sentinels" in await refusal(url, BrokerUnavailable)
        login = f"{url}?sentinel_password=s3cret"
        assert "sentinels" in await refusal(login, BrokerRefused)
    gone = await refusal("redis+sentinel://127.0.0.1:1/tailrace", BrokerUnavailable)
    assert gone.endswith("by the sentinels at 127.0.0.1:1/tailrace: they cannot be reached")
    url = f"redis+sentinel://127.0.0.1:{server.port}/nobody"
    assert "no Redis (or Sentinel) that can be used" in await refusal(url, BrokerUnsuitable)
    # by itself, it would listen on another port for the cluster that may be taken
    config = f"cluster-enabled yes\ncluster-port {choose_port(None, None)}"
    with RedisServer(tmp_path / "cluster", config=config) as cluster:
        assert "is a cluster" in await refusal(cluster.url, BrokerUnsuitable)


async def test_what_a_replica_says_does_not_count(tmp_path: Path, server: RedisServer) -> None:
    """It may be old, and have less than was read: nobody is told for that that records are lost."""
    with RedisServer(tmp_path / "other", config=f"replicaof 127.0.0.1 {server.port}") as other:
        async with await opened(server.url) as store, await opened(server.url) as reader:
            await store.acquire("a")
            async with asyncio.timeout(PATIENCE):
                while await ask(store, "WAIT", 1, 1000) < 1:
                    pass
            assert other.ask("REPLICAOF", "NO", "ONE").startswith(b"+OK")
            await store.append("a", b"x")
            reading = reader.read("a")
            assert (await anext(reading)).chunk == b"x"
            assert server.ask("REPLICAOF", "127.0.0.1", str(other.port)).startswith(b"+OK")
            async with asyncio.timeout(PATIENCE):
                while b"master_link_status:up" not in server.ask("INFO", "replication"):
                    await asyncio.sleep(0.05)
            with pytest.raises(BrokerUnavailable):
                await reader.log.last("a")
            rest = asyncio.ensure_future(anext(reading, None))
            done, _ = await asyncio.wait({rest}, timeout=3.0)
            assert not done
            rest.cancel()


async def test_a_server_that_evicts_is_refused(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", config="maxmemory 100mb\nmaxmemory-policy allkeys-lru") as server:
        assert "allkeys-lru" in await refusal(server.url, BrokerUnsuitable)
        assert server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction").startswith(b"+OK")
        await (await open_redis(server.url)).close()


async def test_a_total_size_is_the_servers_own_matter(server: RedisServer) -> None:
    with pytest.raises(BrokerUnsuitable, match="TAILRACE_MAX_TOTAL_BYTES=1000"):
        await opened(server.url, limits=Limits(max_total_bytes=1000))


async def test_a_full_server_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", config="maxmemory 12mb\nmaxmemory-policy noeviction") as server:
        async with await opened(server.url, lease_ttl=30.0) as store:
            lease = (await store.acquire("a")).lease
            appended = 0
            with pytest.raises(StorageFull):  # noqa: PT012 - which append it is, is the server's matter
                while appended < 100:
                    await store.append("a", b"x" * 200_000, lease)
                    appended += 1
            kept = appended
            assert kept > 5
            assert server.ask("CONFIG", "SET", "maxmemory", "100mb").startswith(b"+OK")
            await store.finalize("a", "done", None, lease)
            assert len(await content(store, "a")) >= kept * 200_000


async def test_what_ends_or_frees_is_written_on_a_full_server(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", config="maxmemory 100mb\nmaxmemory-policy noeviction") as server:
        async with await opened(server.url) as store, await opened(server.url) as other:
            leases = [(await store.acquire(name)).lease for name in "ab"]
            for _ in range(50):
                await store.append("a", b"x" * 200_000, leases[0])
            reading = asyncio.create_task(content(other, "b"))
            assert server.ask("CONFIG", "SET", "maxmemory", "5mb").startswith(b"+OK")
            with pytest.raises(StorageFull):
                await store.append("a", b"x", leases[0])
            beats = "aui:resumable:tailrace:beats"
            (newest, _), *_ = await ask(store, "XREVRANGE", beats, "+", "-", "COUNT", 1)
            async with asyncio.timeout(PATIENCE):
                while not await ask(store, "XRANGE", beats, b"(" + newest, "+"):
                    await asyncio.sleep(0.05)
            await store.finalize("b", "done", None, leases[1])
            assert await reading == b""
            assert await other.delete("a")
            async with asyncio.timeout(PATIENCE):
                while True:  # the room is there a little later
                    with suppress(StorageFull):
                        await store.acquire("a")
                        break
                    await asyncio.sleep(0.05)


async def test_streams_whose_keys_have_expired_count_no_more(server: RedisServer) -> None:
    async with await opened(server.url, limits=Limits(max_streams=2)) as store:
        for stream_id in "ab":
            await store.acquire(stream_id)
            await store.finalize(stream_id, "done")
        with pytest.raises(TooManyStreams):
            await store.acquire("c")
        keys = await ask(store, "KEYS", "aui:resumable:{*")
        assert await ask(store, "DEL", *keys) == len(keys)  # as after days in which no process ran
        assert (await store.acquire("c")).role is Role.PRODUCER
        assert await ask(store, "SMEMBERS", "aui:resumable:tailrace:index") == [b"c"]


@pytest.mark.parametrize("chunks", [[b"x"], []])
@pytest.mark.parametrize(
    ("said", "status"), [('"status":"done"', Status.DONE), ('"status":"error","error":"boom"', Status.ERROR)]
)
async def test_an_ending_that_npm_wrote_by_half(
    server: RedisServer, chunks: list[bytes], said: str, status: Status
) -> None:
    """0.3.15 writes its status and its end in two commands, and may die between them."""
    async with await opened(server.url) as store, await opened(server.url) as other:
        meta, data = "aui:resumable:{a}:meta", "aui:resumable:{a}:data"
        await ask(store, "SET", meta, '{"status":"streaming","ttlSec":100}', "EX", 100)
        for chunk in chunks:
            await ask(store, "XADD", data, "*", "c", chunk)
        readers = [await store.open("a"), await other.open("a")]
        await ask(store, "SET", meta, f'{{{said},"ttlSec":100}}', "EX", 100)
        for reader in readers:
            async with asyncio.timeout(PATIENCE):
                while reader.ending is None:
                    reader.take()
                    await reader.wait()
            assert reader.ending.status is status
            reader.close()
        info = await store.status("a")
        assert (info.status, info.entries) == (status, len(chunks))
        await ask(store, "XADD", data, "*", "fin", "done")  # it was only slow
        assert (await other.status("a")).status is status


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"redis_version": "6.0.16"}, "Redis at here is 6.0.16; 6.2 or newer is needed"),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "6.1.0"}, "Valkey at here is 6.1.0"),
        ({}, "Redis at here is 0"),
    ],
)
def test_an_old_server_is_refused(facts: dict[str, str], text: str) -> None:
    with pytest.raises(BrokerUnsuitable, match=re.escape(text)):
        check_server(facts, "here")


def test_servers_that_will_do() -> None:
    check_server({"redis_version": "6.2.0", "maxmemory_policy": "allkeys-lru", "maxmemory": "0"}, "here")
    check_server({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.1.3"}, "here")


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://a:b:c",
        "redis://one,two",
        "redis://host/x",
        "redis://host/1/2",
        "redis://host?layout=0.3.16",
        "redis://host?no=1",
        "redis://lone@host",
        "redis://u:s3c/ret@host",
        "redis+sentinel://host:1",
        "redis://host:99999999",
        "redis://host:0",
        "redis://[::1]x",
        "redis://host?prefix=",
        "redis://host?prefix=a&prefix=b",
        "redis://host?tls_ca=/ca",
        "redis://u:s3c?ret@host",
    ],
)
async def test_wrong_urls(url: str) -> None:
    with pytest.raises(BrokerUnsuitable) as caught:
        await connect(url)
    assert "s3c" not in str(caught.value)


def test_urls_say_what_they_say() -> None:
    address, options = parse("REDISS://u%40:p%3A@[::1]/4?prefix=x&layout=0.3.15&tls_ca=/ca", RedisOptions())
    assert (address.hosts, address.tls, address.service, address.database) == ((("::1", 6379),), True, "", 4)
    assert (options.user, options.password, options.prefix, options.layout) == ("u@", "p:", "x", "0.3.15")
    address, options = parse("redis+sentinel://:p@a,b:1/my%2Dmaster/2", RedisOptions(user="kept"))
    assert (address.hosts, address.service, address.database) == ((("a", 26379), ("b", 1)), "my-master", 2)
    assert (options.user, options.password) == ("kept", "p")
    assert str(address) == "a:26379,b:1/my-master"


async def test_a_scheme_that_is_almost_right() -> None:
    with pytest.raises(UnknownScheme):
        await connect("redis+socket:///tmp/x")


# ---------------------------------------------------------------- Sentinel


async def test_one_sentinel_that_answers_is_enough(tmp_path: Path, server: RedisServer) -> None:
    held: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    silent = [await asyncio.start_server(hold, "127.0.0.1", 0) for _ in range(3)]
    config = f"sentinel monitor one 127.0.0.1 {server.port} 1"
    with RedisServer(tmp_path / "sentinel", arguments=("--sentinel",), settings="", config=config) as sentinel:
        hosts = [f"127.0.0.1:{one.sockets[0].getsockname()[1]}" for one in silent]
        url = f"redis+sentinel://{','.join(hosts)},127.0.0.1:{sentinel.port}/one"
        async with await opened(url, redis=RedisOptions(connect_timeout=10.0)) as store:
            await store.acquire("a")
    for writer in held:
        writer.close()
    for listening in silent:
        listening.close()


async def test_sentinels_are_asked_by_tls_too(tmp_path: Path) -> None:
    certificate, key = certified(tmp_path)
    files = f"tls-cert-file {certificate}\ntls-key-file {key}\ntls-ca-cert-file {certificate}\ntls-auth-clients no\n"
    files += "tls-replication yes\n"
    port, asked = choose_port(None, None), choose_port(None, None)
    config = f"{files}tls-port {asked}\nsentinel monitor one 127.0.0.1 {port} 1"
    with (
        RedisServer(tmp_path / "redis", config=f"{files}tls-port {port}"),
        RedisServer(tmp_path / "sentinel", arguments=("--sentinel",), settings="", config=config) as sentinel,
    ):
        options = RedisOptions(tls_ca=str(certificate))
        async with await opened(f"rediss+sentinel://127.0.0.1:{asked}/one", redis=options) as store:
            await store.acquire("a")
        plain = f"rediss+sentinel://127.0.0.1:{sentinel.port}/one"
        assert "by the sentinels" in await refusal(plain, BrokerUnavailable, tls_ca=str(certificate))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_failover_by_sentinels(tmp_path: Path) -> None:
    with RedisSentinels(tmp_path) as sentinels:
        async with await opened(sentinels.url) as store, await opened(sentinels.url) as other:
            lease = (await store.acquire("a")).lease
            reading = asyncio.create_task(content(other, "a"))
            wanted = []
            for number in range(20):
                wanted.append(b"before %d;" % number)
                await store.append("a", wanted[-1], lease)
            master = sentinels.master()
            # the replica has it: what a failover loses is another test's matter
            assert await ask(store, "WAIT", 1, 4000) == 1
            master.kill()
            for number in range(20):
                wanted.append(b"after %d;" % number)
                await asyncio.wait_for(store.append("a", wanted[-1], lease), 120)
            assert sentinels.master() is not master
            await store.finalize("a", "done")
            assert await reading == b"".join(wanted)
            assert await content(store, "a") == b"".join(wanted)
            new = (await other.acquire("b")).lease
            await other.append("b", b"x", new)
            await other.finalize("b", "done")
            assert await content(store, "b") == b"x"
