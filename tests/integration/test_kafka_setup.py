"""Connecting to and setting up Kafka: what is made, what is refused, and with which words."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import InvalidReplicationFactorError
from aiokafka.protocol.admin import CreateAclsRequest, CreateTopicsRequest, DescribeConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest

from tailrace._ports import choose_port
from tailrace.connect import StoreOptions, connect
from tailrace.errors import BrokerError, BrokerRefused, BrokerUnavailable, BrokerUnsuitable
from tailrace.kafka import KafkaOptions, permissions
from tailrace.kafka import connection as connections
from tailrace.kafka.address import parse
from tailrace.kafka.broker import open_kafka
from tailrace.kafka_local.jars import classpath
from tailrace.kafka_local.java import find_java
from tailrace.kafka_local.node import Node, new_cluster_id
from tailrace.model import Limits
from tailrace.settings import load
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.kafka_world import opened
from tailrace.testing.server_process import unheard
from tailrace.testing.servers import NatsServer

pytestmark = pytest.mark.slow

UNKNOWN_TOPIC = 3
PATIENCE = 15.0  # seconds within which a set-up that cannot work says so
OPTIONS = KafkaOptions(partitions=2, claims_partitions=1, connect_timeout=2.0)  # short where it is waited out
_prefixes = (f"setup{number}" for number in count())


@pytest.fixture(autouse=True)
async def goodbyes() -> AsyncIterator[None]:
    """By TLS whoever closes first waits for the other's goodbye, which a closed event loop would not hear."""
    yield
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while len(selector.get_map()) > 1:  # the loop's own
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def options() -> KafkaOptions:
    return replace(OPTIONS, prefix=next(_prefixes), connect_timeout=10.0)


async def refused(url: str, kind: type[BrokerError], options: KafkaOptions = OPTIONS) -> str:
    """Open in vain, in time, and give the message, which is one line."""
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        await (await open_kafka(url, options=options)).close()
    assert time.monotonic() - began < PATIENCE
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return f"{caught.value} | {caught.value.hint}"


@asynccontextmanager
async def admin_of(server: KafkaServer) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


# --- topics


async def test_many_processes_set_up_at_once(server: KafkaServer, options: KafkaOptions) -> None:
    brokers = await asyncio.gather(*(open_kafka(server.url, options=options) for _ in range(5)))
    await asyncio.gather(*(broker.close() for broker in brokers))


async def test_topics_have_explicit_settings(server: KafkaServer, options: KafkaOptions) -> None:
    async with opened(server.url, options):
        pass
    name = f"{options.prefix}.claims"
    async with admin_of(server) as admin:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        held = {item[0]: item[1] for item in answer.resources[0][4]}
    assert (held["cleanup.policy"], held["message.timestamp.type"]) == ("delete", "LogAppendTime")
    assert (held["retention.ms"], held["retention.bytes"]) == (str(int(options.retention * 1000)), "-1")


DIFFERENCES = {
    "partitions": ({"partitions": 4}, "2 partitions, and must have 4", "TAILRACE_KAFKA_PARTITIONS=2"),
    "claims": ({"claims_partitions": 3}, "1 partitions, and must have 3", "TAILRACE_KAFKA_CLAIMS_PARTITIONS=1"),
    "retention": ({"retention": OPTIONS.retention + 60}, "retention.ms is", "--add-config retention.ms="),
    "size": ({"max_message_bytes": 1 << 21}, "max.message.bytes is 1048576", "--add-config max.message.bytes=2097152"),
    "replicas": ({"replicas": 3}, "it has 1 replicas, and must have 3", "fewer replicas"),
}


@pytest.mark.parametrize(("change", "words", "mend"), DIFFERENCES.values(), ids=list(DIFFERENCES))
async def test_a_differing_topic_is_refused_by_name(
    server: KafkaServer, options: KafkaOptions, change: dict[str, int], words: str, mend: str
) -> None:
    async with opened(server.url, options):
        pass
    text = await refused(server.url, BrokerUnsuitable, replace(options, **change))  # type: ignore[arg-type]
    assert f"Topic {options.prefix}." in text
    assert words in text
    assert mend in text


STRANGERS = {
    "compaction": ({"cleanup.policy": "compact"}, "cleanup.policy is compact, and must be delete"),
    "time": ({"cleanup.policy": "delete"}, "message.timestamp.type is CreateTime, and must be LogAppendTime"),
    "codec": (
        {"message.timestamp.type": "LogAppendTime", "compression.type": "gzip"},
        "compression.type is gzip, and must be producer",
    ),
    "size": (
        {"message.timestamp.type": "LogAppendTime", "retention.bytes": "1000000"},
        "retention.bytes is 1000000, and must be -1",
    ),
}


@pytest.mark.parametrize(("settings", "words"), STRANGERS.values(), ids=list(STRANGERS))
async def test_a_topic_that_somebody_made_otherwise_is_refused_by_name(
    server: KafkaServer, options: KafkaOptions, settings: dict[str, str], words: str
) -> None:
    name = f"{options.prefix}.claims"
    good = {"retention.ms": "-1"}
    async with admin_of(server) as admin:
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs=good | settings)])
    text = await refused(server.url, BrokerUnsuitable, options)
    assert f"Topic {name} " in text
    assert words in text


async def test_more_generous_topics_are_accepted(server: KafkaServer, options: KafkaOptions) -> None:
    async with opened(server.url, replace(options, max_message_bytes=1 << 21)):
        pass
    async with opened(server.url, replace(options, retention=3600)) as broker:
        await broker.beats.send("m", b"1")


async def test_replicas_that_one_node_cannot_keep(server: KafkaServer, options: KafkaOptions) -> None:
    text = await refused(server.url, BrokerUnsuitable, replace(options, replicas=3))
    assert f"Topic {options.prefix}." in text
    assert "fewer replicas" in text


async def test_a_node_that_does_not_know_a_new_topic_yet_is_asked_again(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question goes to some node of a cluster, and what one has made the others hear of a moment later."""
    send, asked = AIOKafkaAdminClient._send_request, Counter[type]()

    async def ask(admin: AIOKafkaAdminClient, request: Any, node: int | None = None) -> Any:
        answer, kind = await send(admin, request, node), type(request)
        asked[kind] += 1
        if kind is DescribeConfigsRequest and asked[kind] == 1:
            answer.resources = [(UNKNOWN_TOPIC, *rest) for _, *rest in answer.resources]
        if kind is permissions.PermissionsRequest and asked[kind] == 1:
            answer.topics = [(UNKNOWN_TOPIC, *rest) for _, *rest in answer.topics]
        return answer

    monkeypatch.setattr(AIOKafkaAdminClient, "_send_request", ask)
    async with opened(server.url, options):
        assert (asked[permissions.PermissionsRequest], asked[DescribeConfigsRequest]) == (2, 2)


async def test_a_broker_that_is_fenced_for_a_moment_is_waited_for(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is alone and has stalled: until it is heard again it names no node, and nobody can keep a topic."""
    send, asked = AIOKafkaConnection.send, Counter[type]()
    words = "Unable to replicate the partition 1 time(s): All brokers are currently fenced, or have …"

    async def ask(connection: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
        kind = type(request)
        asked[kind] += 1
        if kind is CreateTopicsRequest and asked[kind] == 1:
            request.create_topic_requests = []  # none is made
            answer = await send(connection, request, expect_response)
            answer.topic_errors = [(f"{options.prefix}.chunks", InvalidReplicationFactorError.errno, words)]
            return answer
        answer = await send(connection, request, expect_response)
        if kind is MetadataRequest and asked[kind] <= 4:
            answer.brokers, answer.controller_id = [], -1
        return answer

    monkeypatch.setattr(AIOKafkaConnection, "send", ask)
    async with opened(server.url, options):
        assert asked[CreateTopicsRequest] == 2


# --- brokers that will not do


async def test_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    with unheard() as port:
        text = await refused(f"kafka://127.0.0.1:{port}", BrokerUnavailable)
    assert f"Cannot reach Kafka at 127.0.0.1:{port}" in text
    assert capfd.readouterr().err == ""


async def test_somebody_listens_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "does not answer as Kafka" in await refused(f"kafka://127.0.0.1:{port}", BrokerUnavailable)


async def test_something_else_listens(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with NatsServer(tmp_path / "nats") as nats:
        text = await refused(f"kafka://127.0.0.1:{nats.port}", BrokerUnavailable)
        assert "does not answer as Kafka" in text
        assert "Check the port" in text
    assert "aiokafka" not in capfd.readouterr().err


async def test_a_host_that_is_none() -> None:
    assert "Cannot reach Kafka at no-such-host.invalid:9092" in await refused(
        "kafka://no-such-host.invalid", BrokerUnavailable
    )


async def test_an_old_broker_is_named(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "OLDEST_FETCH", 99)  # every broker there is, is older
    text = await refused(server.url, BrokerUnsuitable, options)
    assert "too old" in text
    assert "2.4" in text


async def test_the_second_of_two_brokers_serves(server: KafkaServer, options: KafkaOptions) -> None:
    with unheard() as port:
        async with opened(f"kafka://127.0.0.1:{port},{server.bootstrap}", options):
            pass


async def test_a_bound_that_kafka_cannot_keep_is_refused(server: KafkaServer) -> None:
    with pytest.raises(BrokerUnsuitable, match="TAILRACE_MAX_TOTAL_BYTES=5 cannot be kept"):
        await connect(server.url, StoreOptions(limits=Limits(max_total_bytes=5)))


# --- logins and TLS


class Guarded(NamedTuple):
    """A node with a listener for each way in."""

    sasl: str
    tls: str
    sasl_tls: str
    mutual: str
    ca: Path
    key: Path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    _certify(folder)
    (folder / "store.pem").write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    server = KafkaServer(folder / "kafka")
    server.port, controller = choose_port(None, None), choose_port(None, None)
    ports = {name: choose_port(None, None) for name in ("SASL", "TLS", "BOTH", "MUTUAL")}
    server._controllers = {1: controller}
    kinds = {"SASL": "SASL_PLAINTEXT", "TLS": "SSL", "BOTH": "SASL_SSL", "MUTUAL": "SSL"}
    open_ones = [f"{name}://127.0.0.1:{port}" for name, port in ports.items()]
    listeners = ",".join([f"PLAINTEXT://127.0.0.1:{server.port}", f"CONTROLLER://127.0.0.1:{controller}", *open_ones])
    plain = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_ann="s3cret@/" user_eve="pass";'
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    properties = {
        "listeners": listeners,
        "advertised.listeners": listeners,
        "listener.security.protocol.map": ",".join(
            ["PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT", *(f"{name}:{kind}" for name, kind in kinds.items())]
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:ann;User:bob;User:CN=somewhere",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "store.pem"),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.mutual.ssl.truststore.type": "PEM",
        "listener.name.mutual.ssl.truststore.location": str(folder / "cert.pem"),
    }
    for name in ("sasl", "both"):
        properties[f"listener.name.{name}.plain.sasl.jaas.config"] = plain
        for kind in ("scram-sha-256", "scram-sha-512"):
            properties[f"listener.name.{name}.{kind}.sasl.jaas.config"] = scram
    server._properties = properties
    users = [f"SCRAM-SHA-{bits}=[name=bob,password={word}]" for bits, word in ((256, "sc-one"), (512, "sc-two"))]
    _format(Node(server.directory, server.port, server._controllers, properties=properties), users)
    with server:
        hosts = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        files = folder / "cert.pem", folder / "key.pem"
        yield Guarded(hosts["SASL"], hosts["TLS"], hosts["BOTH"], hosts["MUTUAL"], *files)


def _certify(folder: Path) -> None:
    """A certificate for 127.0.0.1, and by no name: the server's, its own authority and a client's."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=somewhere"
    command = [*make.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def _format(node: Node, users: list[str]) -> None:
    """Users of SCRAM exist from the first start on."""
    node.directory.mkdir()
    (node.directory / "server.properties").write_text(node.text())
    java = [str(find_java()), "-cp", ":".join(map(str, classpath())), "kafka.tools.StorageTool", "format"]
    command = [*java, "-c", "server.properties", "-t", new_cluster_id()]
    for user in users:
        command += ["--add-scram", user]
    subprocess.run(command, cwd=node.directory, check=True, capture_output=True)


async def test_wrong_and_right_logins(
    guarded: Guarded, options: KafkaOptions, capfd: pytest.CaptureFixture[str]
) -> None:
    text = await refused(f"kafka://ann:wrong-one@{guarded.sasl}", BrokerRefused, options)
    assert "refused the login" in text
    assert "wrong-one" not in text
    assert "login" in await refused(f"kafka://{guarded.sasl}", BrokerUnavailable)
    unknown = f"kafka://ann:s3cret%40%2F@{guarded.sasl}?mechanism=SCRAM-SHA-256"
    assert "refused the login" in await refused(unknown, BrokerRefused, options)
    async with opened(f"kafka://ann:s3cret%40%2F@{guarded.sasl}", options) as broker:
        await broker.beats.send("m", b"1")
    for mechanism, password in (("SCRAM-SHA-256", "sc-one"), ("SCRAM-SHA-512", "sc-two")):
        async with opened(f"kafka://bob:{password}@{guarded.sasl}?mechanism={mechanism}", options) as broker:
            await broker.beats.send("m", b"1")
        url = f"kafka://bob:wrong-two@{guarded.sasl}?mechanism={mechanism}"
        assert "wrong-two" not in await refused(url, BrokerRefused, options)
    err = capfd.readouterr().err
    assert "aiokafka" not in err
    assert "wrong" not in err


async def test_what_a_user_may_not_do_is_told_at_the_start(
    guarded: Guarded, options: KafkaOptions, capfd: pytest.CaptureFixture[str]
) -> None:
    url, grant = f"kafka://eve:pass@{guarded.sasl}", "kafka-acls.sh --add"
    text = await refused(url, BrokerRefused, options)
    assert f"making topic {options.prefix}." in text
    assert grant in text
    async with opened(f"kafka://ann:s3cret%40%2F@{guarded.sasl}", options):
        pass
    await _allow(guarded, options.prefix, "Describe", "Read")
    lacking = f"{guarded.sasl}: the user may not Write, DescribeConfigs"
    async with asyncio.timeout(30):
        while lacking not in (text := await refused(url, BrokerRefused, options)):  # a grant is not seen at once
            await asyncio.sleep(0.1)
    assert f"Topic {options.prefix}." in text
    assert grant in text
    await _allow(guarded, options.prefix, "Write", "DescribeConfigs")
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(BrokerRefused):
                async with opened(url, options) as broker:
                    await broker.beats.send("m", b"1")
                break
            await asyncio.sleep(0.1)
    assert capfd.readouterr().err == ""


async def _allow(guarded: Guarded, prefix: str, *operations: str) -> None:
    """Let eve do this with the topics of the prefix."""
    admin = AIOKafkaAdminClient(
        bootstrap_servers=guarded.sasl,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_plain_username="ann",
        sasl_plain_password="s3cret@/",
    )
    await admin.start()
    topic, prefixed, allow = 2, 4, 3
    for name in operations:
        request = CreateAclsRequest(topic, f"{prefix}.", prefixed, "User:eve", "*", permissions.NEEDED[name], allow)
        answer = await admin._send_request(request)
        assert [code for code, _ in answer.creation_responses] == [0]
    await admin.close()


async def test_tls(guarded: Guarded, options: KafkaOptions, server: KafkaServer) -> None:
    assert "certificate" in await refused(f"kafka+ssl://{guarded.tls}", BrokerRefused, options)
    async with opened(f"kafka+ssl://{guarded.tls}?tls_ca={guarded.ca}", options) as broker:
        await broker.beats.send("m", b"1")
    async with opened(f"kafka+ssl://ann:s3cret%40%2F@{guarded.sasl_tls}?tls_ca={guarded.ca}", options) as broker:
        await broker.beats.send("m", b"1")
    assert "kafka+ssl://" in await refused(f"kafka://{guarded.tls}", BrokerUnavailable)
    text = await refused(f"kafka+ssl://{server.bootstrap}", BrokerError)
    assert "TLS" in text


def from_the_environment(monkeypatch: pytest.MonkeyPatch, like: KafkaOptions, **settings: object) -> KafkaOptions:
    """The options of a process with these settings, and of its own what is no matter here."""
    for name, value in settings.items():
        monkeypatch.setenv(f"TAILRACE_KAFKA_{name}", str(value))
    kept = ("prefix", "partitions", "claims_partitions", "connect_timeout", "request_timeout", "fetch_wait")
    return replace(load(None).store_options().kafka, **{name: getattr(like, name) for name in kept})


async def test_by_tls_nobody_waits_for_what_is_asked(
    guarded: Guarded, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS says goodbye only when the broker has answered, which may hold a question for as long as it was told to."""
    monkeypatch.setattr(connections, "CLOSE_PATIENCE", 600.0)
    options = replace(options, fetch_wait=300.0)
    broker = await open_kafka(f"kafka+ssl://{guarded.tls}?tls_ca={guarded.ca}", options=options)
    connections_of = broker.connection._client._conns
    async with asyncio.timeout(30):
        while not all(each._requests for (_, lane), each in connections_of.items() if lane >= connections.FOLLOW):
            await asyncio.sleep(0.01)
        await broker.close()


async def test_certificates_by_settings(
    guarded: Guarded, options: KafkaOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate for another host, and a listener that asks for a client's."""
    options = replace(options, fetch_wait=1.0)
    elsewhere = f"kafka+ssl://localhost:{guarded.tls.rpartition(':')[2]}"
    checked = from_the_environment(monkeypatch, options, TLS_CA=guarded.ca)
    unchecked = from_the_environment(monkeypatch, options, TLS_CHECK_HOSTNAME="false")
    async with opened(elsewhere, unchecked) as broker:
        await broker.beats.send("m", b"1")
    assert "localhost" in await refused(elsewhere, BrokerRefused, checked)
    # who signed it is asked all the same
    assert "certificate" in await refused(elsewhere, BrokerRefused, replace(unchecked, tls_ca=None))

    mutual = f"kafka+ssl://{guarded.mutual}"
    ours = from_the_environment(monkeypatch, options, TLS_CERT=guarded.ca, TLS_KEY=guarded.key)
    async with opened(mutual, ours) as broker:
        await broker.beats.send("m", b"1")
    _certify(tmp_path)  # what somebody else vouches for
    strange = {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    checked = replace(checked, connect_timeout=OPTIONS.connect_timeout)
    for wrong in (checked, replace(checked, **strange)):
        assert guarded.mutual in await refused(mutual, BrokerError, wrong)


async def test_files_that_are_missing_or_something_else(
    server: KafkaServer, options: KafkaOptions, tmp_path: Path
) -> None:
    (tmp_path / "cert").write_text("nothing of the kind")
    url = server.url
    assert "tls_ca" in await refused(url, BrokerRefused, replace(options, tls_ca="/nonexistent"))
    assert "TLS files" in await refused(url, BrokerRefused, replace(options, tls_cert=str(tmp_path / "cert")))
    assert "without tls_cert" in await refused(url, BrokerRefused, replace(options, tls_key=str(tmp_path / "cert")))


# --- URLs


def test_urls() -> None:
    address, options = parse("kafka+ssl://u:p%2F@h1:4333,[::1]/?replicas=3&tls_ca=/c", KafkaOptions())
    assert address.servers == (("h1", 4333), ("::1", 9092))
    assert address.bootstrap == ["h1:4333", "[::1]:9092"]
    assert (options.user, options.password, options.tls, options.replicas) == ("u", "p/", True, 3)
    assert "p/" not in repr(address) + str(address) + repr(options)
    assert parse(["kafka://h1", "KAFKA://h2:1"], KafkaOptions())[0].servers == (("h1", 9092), ("h2", 1))


@pytest.mark.parametrize(
    "url",
    [
        *("http://h", "kafka://", "kafka://h:x", "kafka://h?no=1", "kafka://h?partitions=0", "kafka://:1"),
        *("kafka://h?mechanism=GSSAPI", "kafka://h?replicas=x", "kafka://h?min_insync_replicas=2", "kafka://h:0"),
        *("kafka://[::1]x", "kafka://h/topic", "kafka://h?prefix=", "kafka://h?partitions=1&partitions=2"),
        *("kafka://lone@h", "kafka://:password@h"),
    ],
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(BrokerUnsuitable, match="Wrong Kafka URL"):
        parse(url, KafkaOptions())


def test_a_login_may_be_in_parts() -> None:
    known = KafkaOptions(user="ann", password="word")
    for url, login in (
        ("kafka://h", ("ann", "word")),
        ("kafka://bob@h", ("bob", "word")),
        ("kafka://:other@h", ("ann", "other")),
    ):
        options = parse(url, known)[1]
        assert (options.user, options.password) == login


def test_a_password_that_must_be_escaped_is_not_shown() -> None:
    with pytest.raises(BrokerUnsuitable, match="%2F") as caught:
        parse("kafka://me:se/cret@h", KafkaOptions())
    assert "cret" not in caught.value.message
