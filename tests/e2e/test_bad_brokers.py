"""A broker that does not do is one line that says what, where and how to mend it, and exit status 2, within 15 s."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.servers import NatsServer

WITHIN = 15.0  # seconds
LINE = re.compile(r"tailrace: \S.* \[(?P<code>[a-z-]+)\]\. \S.*")
DATA = bytes(300_000)  # more than one chunk of the default limit
Complaint = Callable[[Any], str]


@pytest.fixture
def refused(cli: Any, complaint: Complaint) -> Callable[..., str]:
    """Run a command in vain, and give its one line, which has this error code."""

    def run(code: str, *arguments: str, **settings: str) -> str:
        done = cli(*arguments, timeout=WITHIN, **settings)
        line = complaint(done)
        assert (done.returncode, done.stdout) == (2, b"")
        found = LINE.fullmatch(line)
        assert found is not None, line
        assert found["code"] == code, line
        return line

    return run


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


# --- messages that are smaller than a chunk may be


def published(cli: Any, stream_id: str, store: str, **settings: str) -> int:
    """Publish the data, and give the number of chunks that it became."""
    done = cli("publish", stream_id, "--json", "--store", store, input=DATA, **settings)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert (told["status"], told["bytes"]) == ("done", len(DATA))
    return int(told["entries"])


def test_nats_messages_that_no_record_fits_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats", config="max_payload: 65536") as server:
        said = refused("broker-unsuitable", "worker", "--store", server.url, MAX_CHUNK_BYTES="1KiB")
        assert f"{server.url} are too small: a record holds 32768 bytes, and must hold 98304" in said
        assert "Raise max_payload in the nats-server's configuration to 131072 or more" in said


def test_a_largest_chunk_that_nats_does_not_take_is_refused(
    cli: Any, refused: Callable[..., str], tmp_path: Path
) -> None:
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
def test_a_largest_chunk_that_kafka_does_not_take_is_refused(
    cli: Any, refused: Callable[..., str], kafka: KafkaServer
) -> None:
    small = {"KAFKA_PREFIX": "small", "KAFKA_MAX_MESSAGE_BYTES": "131072"}
    said = refused("broker-unsuitable", "publish", "a", "--store", kafka.url, MAX_CHUNK_BYTES="4MiB", **small)
    assert f"TAILRACE_MAX_CHUNK_BYTES=4194304 cannot be kept at {kafka.url}: a record holds 98304 bytes" in said
    assert "the topics' max.message.bytes and TAILRACE_KAFKA_MAX_MESSAGE_BYTES to 4227072 or more" in said
    refused("missing", "status", "a", "--store", kafka.url, **small)
    assert published(cli, "b", kafka.url, **small) > 3
    assert cli("read", "b", "--store", kafka.url, **small).stdout == DATA


def test_a_largest_chunk_beyond_memory_is_refused(refused: Callable[..., str]) -> None:
    said = refused("broker-unsuitable", "up", "--port", "0", "--store", "memory://", MAX_CHUNK_BYTES="65MiB")
    assert said.endswith("Set it to 67108864 or less.")
