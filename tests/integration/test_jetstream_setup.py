"""Connecting to and setting up JetStream: what is made, what is refused, and with which words."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nkeys
import pytest

from tailrace.errors import BrokerError, BrokerFailed, BrokerRefused, BrokerUnavailable, BrokerUnsuitable, StorageFull
from tailrace.jetstream import JetStream, JetStreamOptions, open_jetstream
from tailrace.jetstream.address import options_of, parse
from tailrace.jetstream.client import Client
from tailrace.jetstream.connection import check_version
from tailrace.model import Incarnation
from tailrace.records import Kind, Record
from tailrace.testing.server_process import unheard
from tailrace.testing.servers import NatsServer

OPTIONS = JetStreamOptions(shards=2)
IN_VAIN = replace(OPTIONS, connect_timeout=1.5)


@asynccontextmanager
async def opened(url: str | Sequence[str], options: JetStreamOptions = OPTIONS) -> AsyncIterator[JetStream]:
    broker = await open_jetstream(url, options=options)
    try:
        yield broker
    finally:
        await broker.close()


async def refused(url: str, kind: type[BrokerError], options: JetStreamOptions = OPTIONS) -> str:
    """Open in vain, and give the message, which is one line."""
    with pytest.raises(kind) as caught:
        await (await open_jetstream(url, options=options)).close()
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return f"{caught.value} | {caught.value.hint}"


async def restarted(server: NatsServer, broker: JetStream) -> None:
    reconnected = asyncio.Event()
    await broker.connection.follow("any", lambda *_: None, reconnected.set)
    server.restart()
    await reconnected.wait()


# --- streams


async def test_many_processes_set_up_at_once(nats_server: NatsServer) -> None:
    options = replace(OPTIONS, shards=32)
    brokers = await asyncio.gather(*(open_jetstream(nats_server.url, options=options) for _ in range(5)))
    listed = await brokers[0].connection.api("STREAM.NAMES")
    assert len(listed["streams"]) == 32 + 4
    assert "TAILRACE_S_05" in listed["streams"]
    await asyncio.gather(*(broker.close() for broker in brokers))


async def test_the_shards_republish_and_refuse_when_full(nats_server: NatsServer) -> None:
    async with opened(nats_server.url) as broker:
        found = (await broker.connection.api("STREAM.INFO.TAILRACE_S_01"))["config"]
    assert found["republish"] == {"src": "tailrace.s.01.*", "dest": "tailrace.l.01.{{wildcard(1)}}"}
    assert (found["discard"], found["max_msgs_per_subject"], found["allow_direct"]) == ("new", -1, True)


DIFFERENCES: list[tuple[str, JetStreamOptions, str, str]] = [
    ("max_age", replace(OPTIONS, retention=OPTIONS.retention + 60), "max_age is 176400 s", "--max-age=176460s"),
    ("replicas", replace(OPTIONS, replicas=3), "num_replicas is 1, and must be 3", "--replicas=3"),
    ("shards", replace(OPTIONS, shards=4), "tailrace-shards is '2', and must be '4'", "shards to 2"),
    (
        "bytes",
        replace(OPTIONS, max_bytes=1 << 20),
        "max_bytes is -1, and must be 524288",
        "nats stream edit TAILRACE_S_00 --max-bytes=524288",
    ),
]


@pytest.mark.parametrize(
    ("options", "words", "mend"), [case[1:] for case in DIFFERENCES], ids=[case[0] for case in DIFFERENCES]
)
async def test_a_differing_setting_is_refused_by_name(
    nats_server: NatsServer, options: JetStreamOptions, words: str, mend: str
) -> None:
    async with opened(nats_server.url):
        pass
    text = await refused(nats_server.url, BrokerUnsuitable, options)
    assert words in text
    assert mend in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "TAILRACE_S_01", "subjects": ["tailrace.s.01.*"], "storage": "memory"}, "TAILRACE_S_01"),
        ({"name": "OTHER", "subjects": ["tailrace.s.>"], "storage": "file"}, "overlap"),
    ],
)
async def test_a_strangers_stream_in_the_way_is_named(
    nats_server: NatsServer, settings: dict[str, Any], words: str
) -> None:
    async with opened(nats_server.url, replace(OPTIONS, prefix="other")) as broker:
        await broker.connection.api(f"STREAM.CREATE.{settings['name']}", settings)
    assert words in await refused(nats_server.url, BrokerUnsuitable)


async def test_a_store_that_cannot_be_made_for_a_moment_is_made_later(nats_server: NatsServer) -> None:
    """As behind the deletion of an account's last stream, whose directory the server removes after its answer. Here a
    file is in the way, until the server removes it behind its failure."""
    (nats_server.directory / "data" / "jetstream" / "$G").touch()
    async with opened(nats_server.url):
        pass
    assert "Stream create failed" in (nats_server.directory / "server.log").read_text()


async def test_a_store_that_cannot_be_made_is_refused_with_the_servers_words(nats_server: NatsServer) -> None:
    store = nats_server.directory / "data" / "jetstream"
    store.rename(nats_server.directory / "aside")
    store.touch()
    words = await refused(nats_server.url, BrokerFailed)
    assert "STREAM.CREATE.TAILRACE_S_00" in words
    assert "error creating store for stream (error 10049)" in words
    assert "The server's log says more" in words


async def test_longer_retention_and_an_operators_bound_are_accepted(nats_server: NatsServer) -> None:
    async with opened(nats_server.url, replace(OPTIONS, max_bytes=1 << 24)):
        pass
    async with opened(nats_server.url, replace(OPTIONS, retention=3600)) as broker:
        await broker.beats.send("m", b"1")


async def test_a_full_stream_says_so(nats_server: NatsServer) -> None:
    async def fill(broker: JetStream) -> None:
        position = 0
        for number in range(100):
            record = Record(Kind.CHUNKS, "s", Incarnation(1, 7), 1, number, 0, f"n{number}", (bytes(100),))
            position = await broker.log.append(record, position)

    async with opened(nats_server.url, replace(OPTIONS, max_bytes=4000)) as broker:
        with pytest.raises(StorageFull, match="The broker is full"):
            await fill(broker)


# --- servers that will not do


async def test_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    with unheard() as port:
        text = await refused(f"nats://127.0.0.1:{port}", BrokerUnavailable, IN_VAIN)
    assert f"nats://127.0.0.1:{port}" in text
    assert capfd.readouterr().err == ""


async def deaf(self: Client, server: object) -> None:
    """An attempt whose cancellation gets lost, as now and then in Python 3.11's `wait_for` (python/cpython#86296)."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ConnectionRefusedError from None


async def test_an_attempt_that_misses_its_cancellation_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "_connect_to_server", deaf)
    async with asyncio.timeout(30):
        await refused("nats://127.0.0.1:1", BrokerUnavailable, replace(IN_VAIN, connect_timeout=0.2))


async def test_a_broker_that_is_away_is_not_dialled_behind_a_close(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = asyncio.all_tasks()
    async with opened(nats_server.url) as broker:
        monkeypatch.setattr(Client, "_connect_to_server", deaf)
        nats_server.kill()
        while not broker.connection._client.is_reconnecting:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # an attempt is under way
    async with asyncio.timeout(30):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


async def test_somebody_listens_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        assert "no answer" in await refused(url, BrokerUnavailable, IN_VAIN)


async def test_jetstream_is_off(tmp_path: Path) -> None:
    with NatsServer(tmp_path, jetstream=False) as server:
        assert "-js" in await refused(server.url, BrokerUnsuitable)


async def test_wrong_and_right_credentials(tmp_path: Path) -> None:
    config = 'authorization { user: "ann", password: "s3cret@/" }'
    with NatsServer(tmp_path, config=config) as server:
        host = f"127.0.0.1:{server.port}"
        for url in (server.url, f"nats://ann:wrong-one@{host}"):
            text = await refused(url, BrokerRefused)
            assert "authorization violation" in text.lower()
            assert "wrong-one" not in text
        async with opened(f"nats://ann:s3cret%40%2F@{host}"):
            pass
        async with opened(server.url, replace(OPTIONS, user="ann", password="s3cret@/")) as broker:
            await restarted(server, broker)
            await broker.beats.send("m", b"1")
        other = replace(OPTIONS, user="bob", password="wrong-one")  # the URL's login is taken whole
        async with opened(f"nats://ann:s3cret%40%2F@{host}", other):
            pass


async def test_a_token_is_a_lone_user(tmp_path: Path) -> None:
    with NatsServer(tmp_path, config='authorization { token: "t0ken" }') as server:
        async with opened(f"nats://t0ken@127.0.0.1:{server.port}"):
            pass
        async with opened(server.url, replace(OPTIONS, token="t0ken")):
            pass


class Key:
    """An nkey of one kind, which signs JSON web tokens as the server reads them."""

    def __init__(self, kind: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), kind)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self._pair.public_key.decode()

    def sign(self, subject: Key, kind: str, **facts: Any) -> str:
        claims = {"jti": "x", "iat": 1, "iss": self.public, "name": kind, "sub": subject.public}
        claims["nats"] = {"type": kind, "version": 2, **facts}
        parts = [json.dumps(part).encode() for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)]
        signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
        return (signed + b"." + base64.urlsafe_b64encode(self._pair.sign(signed)).rstrip(b"=")).decode()


async def test_an_nkey(tmp_path: Path) -> None:
    key, stranger = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    with NatsServer(tmp_path, config=f"authorization {{ users: [{{ nkey: {key.public} }}] }}") as server:
        told = await refused(server.url, BrokerRefused, replace(OPTIONS, nkey_seed=stranger.seed.decode()))
        assert stranger.seed.decode() not in told
        async with opened(f"{server.url}?nkey={key.seed.decode()}") as broker:
            await restarted(server, broker)
            await broker.beats.send("m", b"1")


async def test_a_credentials_file(tmp_path: Path) -> None:
    operator, account = Key(nkeys.PREFIX_BYTE_OPERATOR), Key(nkeys.PREFIX_BYTE_ACCOUNT)
    user, stranger = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1) | {"wildcards": True}
    limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    system = Key(nkeys.PREFIX_BYTE_ACCOUNT)
    preload = f"{account.public}: {operator.sign(account, 'account', limits=limits)}, "
    preload += f"{system.public}: {operator.sign(system, 'account')}"
    config = f"operator: {operator.sign(operator, 'operator')}\nsystem_account: {system.public}\n"
    config += f"resolver: MEMORY\nresolver_preload: {{ {preload} }}"
    files = {}
    for name, key in (("good", user), ("wrong", stranger)):
        files[name] = tmp_path / f"{name}.creds"
        token = account.sign(user, "user", subs=-1, data=-1, payload=-1)
        files[name].write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{key.seed.decode()}\n------END USER NKEY SEED------\n"
        )
    with NatsServer(tmp_path / "nats", config=config) as server:
        await refused(server.url, BrokerRefused, replace(OPTIONS, creds_file=str(files["wrong"])))
        async with opened(f"{server.url}?creds={files['good']}") as broker:
            await restarted(server, broker)
            await broker.beats.send("m", b"1")


async def test_a_forbidden_subject_is_named_at_once(tmp_path: Path) -> None:
    config = (
        'authorization { users: [{ user: a, password: b, permissions: { publish: { deny: ["$JS.API.STREAM.CREATE.>"] }'
        ', subscribe: { deny: ["tailrace.ml.*"] } } }, { user: c, password: d }] }'
    )
    with NatsServer(tmp_path, config=config) as server:
        url = f"nats://a:b@127.0.0.1:{server.port}"
        assert "$js.api.stream.create" in await refused(url, BrokerRefused, replace(OPTIONS, request_timeout=60))
        async with opened(f"nats://c:d@127.0.0.1:{server.port}"):
            pass
        async with opened(url) as broker:
            with pytest.raises(BrokerRefused, match=r"tailrace\.ml"):
                await broker.beats.follow(lambda *_: None, lambda: None)


@pytest.mark.parametrize("subject", ["s.*.*", "g.>", "m.*", "r.>", "dead.>"])
async def test_a_subject_that_may_not_be_written_is_named_at_the_start(tmp_path: Path, subject: str) -> None:
    rights = f'publish: {{ deny: ["tailrace.{subject}"] }}'
    users = f"{{ user: a, password: b, permissions: {{ {rights} }} }}, {{ user: c, password: d }}"
    with NatsServer(tmp_path, config=f"authorization {{ users: [{users}] }}") as server:
        at = f"127.0.0.1:{server.port}"
        assert f'publish to "tailrace.{subject[:2].rstrip(".*")}' in await refused(f"nats://a:b@{at}", BrokerRefused)
        async with opened(f"nats://c:d@{at}") as broker:
            streams = (await broker.connection.api("STREAM.LIST"))["streams"]
            assert [one["state"]["messages"] for one in streams] == [0] * len(streams)  # trying stored nothing


async def test_tls_that_is_not_offered_is_not_done_without(nats_server: NatsServer) -> None:
    assert "TLS" in await refused(f"tls://127.0.0.1:{nats_server.port}", BrokerRefused)


async def test_tls(tmp_path: Path) -> None:
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    command = [*make.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    with NatsServer(tmp_path / "nats", config=f'tls {{ cert_file: "{cert}", key_file: "{key}" }}') as server:
        url = f"tls://127.0.0.1:{server.port}"
        assert "certificate" in await refused(url, BrokerRefused)
        async with opened(f"{url}?tls_ca={cert}") as broker:
            await restarted(server, broker)
            await broker.beats.send("m", b"1")


async def test_files_that_are_missing_or_something_else(nats_server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "creds").write_text("nothing of the kind")
    assert "creds_file" in await refused(f"{nats_server.url}?creds=/nonexistent", BrokerRefused)
    assert "not a credentials file" in await refused(f"{nats_server.url}?creds={tmp_path}/creds", BrokerRefused)
    assert "tls_ca" in await refused(nats_server.url, BrokerRefused, replace(OPTIONS, tls_ca="/nonexistent"))
    assert "TLS files" in await refused(nats_server.url, BrokerRefused, replace(OPTIONS, tls_cert=f"{tmp_path}/creds"))
    key_alone = replace(OPTIONS, tls_key=f"{tmp_path}/creds")
    assert "without tls_cert" in await refused(nats_server.url, BrokerRefused, key_alone)
    assert "SU" in await refused(nats_server.url, BrokerRefused, replace(OPTIONS, nkey_seed="UABC"))
    assert "HUSH" not in await refused(nats_server.url, BrokerRefused, replace(OPTIONS, nkey_seed="SUAHUSHHUSH"))


async def test_the_second_of_two_servers_serves(nats_server: NatsServer) -> None:
    with unheard() as port:
        async with opened(f"nats://127.0.0.1:{port},127.0.0.1:{nats_server.port}"):
            pass


def test_an_old_server_is_named() -> None:
    check_version("2.11.0", "nats://h:1")
    check_version("2.12.0-RC.1", "nats://h:1")
    for version in ("2.10.29", "1.4.1", "0"):
        with pytest.raises(BrokerUnsuitable, match=version):
            check_version(version, "nats://h:1")


# --- URLs


def test_urls() -> None:
    address, query = parse("tls://u:p%2F@h1:4333,[::1]/?replicas=3&creds=/c")
    assert (address.servers, address.tls) == (("nats://h1:4333", "nats://[::1]:4222"), True)
    assert (address.user, address.password, address.token) == ("u", "p/", None)
    options = options_of(query, JetStreamOptions())
    assert (options.replicas, options.creds_file) == (3, "/c")
    assert parse(["h1", "nats://h2:1"])[0].servers == ("nats://h1:4222", "nats://h2:1")
    assert "p/" not in repr(address) + str(address)
    listed = parse("NATS://u:p@h1:1,nats://u:p@h2:2?shards=3")
    assert (listed[0].servers, listed[0].user, listed[1]) == (("nats://h1:1", "nats://h2:2"), "u", {"shards": "3"})


@pytest.mark.parametrize(
    "url",
    [
        *("http://h", "nats://", "nats://h:x", "nats://h?no=1", "nats://h?shards=0", "nats://:1", "nats://h:0"),
        *(
            "nats://h:65536",
            "nats://[::1]x",
            "nats://h/replicas=3",
            "nats://h/#x",
            "nats://h?prefix=",
            "nats://h?prefix",
        ),
        "nats://h?replicas=1&replicas=3",
    ],
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(BrokerUnsuitable, match="Wrong NATS URL"):
        options_of(parse(url)[1], JetStreamOptions())


def test_a_password_that_must_be_escaped_is_not_shown() -> None:
    with pytest.raises(BrokerUnsuitable, match="%2F") as caught:
        parse("nats://me:se/cret@h")
    assert "se" not in caught.value.message.replace("server", "")
