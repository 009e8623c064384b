"""Settings: where they come from, what they refuse, and that secrets stay secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailrace.settings import InvalidSetting, Row, Settings, describe, load


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TAILRACE_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def row(settings: Settings, name: str) -> Row:
    return next(row for row in describe(settings) if row.name == name)


def test_arguments_win_over_the_environment_and_that_over_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("TAILRACE_PORT=1\nTAILRACE_SLOTS=2\nTAILRACE_HOST=h\nOTHER=x\n")
    monkeypatch.setenv("TAILRACE_SLOTS", "3")
    monkeypatch.setenv("TAILRACE_HOST", "i")
    settings = load(host="j", store=None)
    assert (settings.port, settings.slots, settings.host, settings.store) == (1, 3, "j", "embedded://")
    assert row(settings, "TAILRACE_PORT").source == ".env"
    assert row(settings, "TAILRACE_SLOTS").source == "environment"
    assert row(settings, "TAILRACE_HOST").source == "argument"
    assert row(settings, "TAILRACE_STORE").source == "default"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PORT", "x", ["TAILRACE_PORT='x'", "integer"]),
        ("PORT", "65536", ["TAILRACE_PORT='65536'", "65535"]),
        ("MAX_CHUNK_BYTES", "lots", ["TAILRACE_MAX_CHUNK_BYTES='lots'", "256KiB", "bytes"]),
        ("MAX_CHUNK_BYTES", "0", ["TAILRACE_MAX_CHUNK_BYTES='0'", "greater than 0"]),
        ("LEASE_TTL", "nan", ["TAILRACE_LEASE_TTL='nan'", "seconds"]),
        ("LEASE_TTL", "-1", ["TAILRACE_LEASE_TTL='-1'", "greater than 0"]),
        ("LOG_LEVEL", "loud", ["TAILRACE_LOG_LEVEL='loud'", "'debug', 'info', 'warning' or 'error'"]),
        ("NATS_PREFIX", "A B", ["TAILRACE_NATS_PREFIX='A B': must match"]),
        ("HOST", "", ["TAILRACE_HOST=''", "at least 1 character"]),  # it would be every address
        ("SEND_BUFFER", "10TB", ["TAILRACE_SEND_BUFFER='10TB'", "2147483647"]),
        ("USER_TIMEOUT", "1e9", ["TAILRACE_USER_TIMEOUT='1e9'", "seconds"]),
        ("MAX_TTL", "1e300", ["TAILRACE_MAX_TTL='1e300'", "seconds"]),
        ("DEFAULT_TTL", "100000", ["TAILRACE_DEFAULT_TTL=100000", "TAILRACE_MAX_TTL=86400"]),
        ("FLUSH_INTERVAL", "20", ["TAILRACE_FLUSH_INTERVAL=20", "TAILRACE_KEEPALIVE_INTERVAL=15"]),
    ],
)
def test_a_bad_value_is_named_with_what_it_must_be(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: list[str]
) -> None:
    monkeypatch.setenv(f"TAILRACE_{name}", value)
    with pytest.raises(InvalidSetting) as caught:
        load()
    assert caught.value.code == "invalid-setting"
    assert "\n" not in caught.value.message
    for part in told:
        assert part in caught.value.message


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_bytes(b"TAILRACE_PORT=\xff")
    with pytest.raises(InvalidSetting, match="settings cannot be read: it is not UTF-8"):
        load(str(file))


def test_sizes_and_lifted_limits() -> None:
    settings = load(None, max_chunk_bytes="1MiB", max_entries="none", max_streams="7")
    assert settings.limits().max_chunk_bytes == 1024 * 1024
    assert settings.limits().max_entries is None
    assert settings.limits().max_streams == 7


def test_secrets_are_given_to_the_broker_and_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_PASSWORD", "NATS_TOKEN", "NATS_NKEY_SEED", "OPENAI_API_KEY"):
        monkeypatch.setenv(f"TAILRACE_{name}", "hush")
    monkeypatch.setenv("TAILRACE_STORE", "nats://user:hush@host:4222")
    settings = load()
    shown = " ".join(f"{row}" for row in describe(settings)) + repr(settings.nats_password)
    assert "hush" not in shown
    assert "nats://***@host:4222" in shown
    for store in ("nats://hush@h1,u:hush@h2", "nats://u:hush@h1,nats://u:hush@h2", "nats://h?nkey=hush&shards=2"):
        assert "hush" not in row(load(store=store), "TAILRACE_STORE").value
    assert row(load(store="nats://h?nkey=hush&shards=2"), "TAILRACE_STORE").value == "nats://h?nkey=***&shards=2"
    options = settings.store_options()
    assert options.jetstream is not None
    assert (options.jetstream.password, options.jetstream.token) == ("hush", "hush")
    assert options.limits == settings.limits()


def test_origins_are_split() -> None:
    assert load(None, cors_origins=" https://a.example/, https://b.example ,").origins() == {
        "https://a.example",
        "https://b.example",
    }
    assert load(None).origins() == frozenset()
