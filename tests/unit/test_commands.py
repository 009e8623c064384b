"""The CLI's pure parts: what options mean together, what is printed, what the demo plans."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tailrace import cli
from tailrace.commands import options, output
from tailrace.commands.demo import EARLIEST, LATEST, Plan, curl_commands, read_text
from tailrace.commands.run import parse_input
from tailrace.commands.runtime import Stop, Usage, run
from tailrace.errors import BrokerUnavailable, ProducerLost, StreamErrored, StreamNotFound, TailraceError


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No .env file is near, and what a command does to the logs is undone."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("error", "told"),
    [(socket.gaierror(-2, "no such name"), False), (ConnectionResetError(), False), (KeyError(), True)],
)
def test_a_connection_that_was_given_up_is_nobodys_news(
    error: Exception, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def command(stop: Stop) -> int:
        asyncio.get_running_loop().create_future().set_exception(error)
        return 0

    gc.collect()  # another test's news
    caplog.clear()
    assert run(command) == 0
    gc.collect()
    assert ("never retrieved" in caplog.text) is told


def test_an_error_is_one_line_whatever_it_holds() -> None:
    error = TailraceError("It broke:\nfirst\n  second.", code="broken", hint="Mend\nit.")
    assert output.error_line(error) == "It broke: first second [broken]. Mend it."
    assert output.error_line(TailraceError("It broke", code="broken")) == "It broke [broken]"


def test_what_a_sender_wrote_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("type: \x1b]0;title\x07\x7f\x9b31m\u2028é")
    assert capsys.readouterr().err == "tailrace: type: \\u001b]0;title\\u0007\\u007f\\u009b31m é\n"


def test_exit_statuses_tell_a_bad_ending_from_a_failure() -> None:
    assert output.exit_status(StreamErrored("no")) == output.exit_status(ProducerLost("no")) == 1
    assert output.exit_status(BrokerUnavailable("no")) == output.exit_status(StreamNotFound("no")) == 2


def test_a_table_for_programs_is_tab_separated(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("a", "b"), [("1", "x [y]"), ("2", "z" * 300)])
    assert capsys.readouterr().out == "1\tx [y]\n2\t" + "z" * 300 + "\n"


def test_fields_leave_out_what_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    output.fields({"id": "a", "code": None, "message": "two\nlines", "bytes": 0})
    assert capsys.readouterr().out == "id       a\nmessage  two lines\nbytes    0\n"


@pytest.mark.parametrize(
    ("given_options", "url"),
    [
        ({"port": 18}, "http://127.0.0.1:18"),
        ({"host": "0.0.0.0", "port": 18}, "http://127.0.0.1:18"),
        ({"host": "::1", "port": 18}, "http://[::1]:18"),
        ({"gateway": "http://a.example:1/"}, "http://a.example:1"),
        ({}, None),
        ({"store": "nats://x"}, None),
    ],
)
def test_where_a_stream_is(given_options: dict[str, object], url: str | None) -> None:
    every = {"store": None, "gateway": None, "host": None, "port": None} | given_options
    assert options.where(**every).url == url  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given_options",
    [
        {"store": "nats://x", "port": 1},
        {"gateway": "http://x", "port": 1},
        {"gateway": "ftp://x"},
        {"gateway": "127.0.0.1:80"},
    ],
)
def test_options_that_contradict_each_other(given_options: dict[str, object]) -> None:
    every = {"store": None, "gateway": None, "host": None, "port": None} | given_options
    with pytest.raises(Usage):
        options.where(**every)  # type: ignore[arg-type]


def test_input_is_json_or_a_file_of_it(tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"text": "é"}', encoding="utf-8")
    assert parse_input('{"a": [1]}') == {"a": [1]}
    assert parse_input(f"@{file}") == {"text": "é"}
    file.write_bytes(b"\xff")
    for wrong in ("{", "@/nowhere/at/all", f"@{file}", "[" * 100_000, "NaN", "1e999", '"\\ud800"'):
        with pytest.raises(Usage):
            parse_input(wrong)


@given(st.text(min_size=100, max_size=5000), st.integers(0, 10_000), st.floats(1, 60))
def test_a_plan_kills_within_bounds_and_paces_the_whole(text: str, seed: int, seconds: float) -> None:
    plan = Plan(text, seed, seconds) if text.isprintable() else Plan("x" * 100, seed, seconds)
    size = len(plan.data)
    assert EARLIEST * size - 1 <= plan.gateway_at <= plan.broker_at <= LATEST * size
    again = Plan(plan.data.decode(), seed, seconds)
    assert (again.gateway_at, again.broker_at) == (plan.gateway_at, plan.broker_at)
    chunks = -(-len(plan.input["text"]) // plan.input["chunk"])
    assert chunks / plan.input["rate"] == pytest.approx(seconds)


def test_the_text_that_ships_is_there_and_long_enough() -> None:
    text = read_text(None)
    assert 7_000 < len(text.encode()) < 14_000
    assert text.encode() != text.encode("ascii", "replace")  # a byte is not a character here
    assert hashlib.sha256(text.encode()).hexdigest() == Plan(text, 1, 1).sha256


def test_the_demo_refuses_what_it_cannot_stream(tmp_path: Path) -> None:
    for name, data in (("short", b"abc"), ("binary", b"\xff" * 200)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Usage):
            read_text(tmp_path / name)
    with pytest.raises(Usage):
        read_text(tmp_path / "nothing")


def test_the_curl_commands_hold_one_request_in_single_quotes() -> None:
    start, resume, status = curl_commands("http://127.0.0.1:1")
    body = json.loads(start.split("-d '")[1].removesuffix("'"))
    assert body["handler"] == "echo"
    assert body["id"] in resume
    assert status.endswith(f"/v1/runs/{body['id']}/status")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["read"],
        ["read", "a", "--cursor", "x", "--offset", "1"],
        ["read", "a", "--incarnation", "1-0000000000000000"],
        ["read", "a", "--offset", "1", "--incarnation", "x"],
        ["read", "a b"],
        ["read", "a", "--store", "memory://"],
        ["read", "a", "--store", "foo://x"],
        ["status", "a\n"],
        ["gateway", "--store", "memory://"],
        ["gateway", "--port", "70000"],
        ["worker", "--handlers", "no.such.module:x"],
        ["run", "echo"],
        ["run", "echo", "--input", "{"],
        ["run", "echo", "--input", "{}", "--ttl", "nan"],
        ["run", "echo", "--input", "{}", "--gateway", "http://[::1"],
        ["publish", "a", "--ttl", "0"],
        ["publish", "a", "--ttl", "-1"],
        ["demo", "--exit", "--store", "memory://"],
        ["demo", "--exit", "--store", "nonsense"],
        ["demo", "--input", "/nowhere"],
    ],
)
def test_a_wrong_call_is_one_line_and_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    out, err = capfd.readouterr()
    assert err.startswith("tailrace: ")
    assert err.count("\n") == 1
    assert "[internal]" not in err
    assert out == "" or arguments[0] == "demo"


def test_help_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert cli.main(["publish", "-h"]) == 0
    assert cli.main(["version", "--json"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["tailrace"]
    assert cli.main([]) == 2


def test_settings_are_listed_and_secrets_masked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILRACE_NATS_PASSWORD", "swordfish")
    assert cli.main(["settings", "--json"]) == 0
    assert cli.main(["settings"]) == 0
    out = capfd.readouterr().out
    rows = {row["name"]: row for row in json.loads(out.splitlines()[0])}
    assert rows["TAILRACE_NATS_PASSWORD"]["source"] == "environment"
    assert rows["TAILRACE_PORT"]["source"] == "default"
    assert "swordfish" not in out
    monkeypatch.setenv("TAILRACE_PORT", "many")
    assert cli.main(["settings"]) == 2
    assert "TAILRACE_PORT" in capfd.readouterr().err
