"""The demo, which kills what it started, and ends all of it whatever happens."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tailrace.connect import connect
from tailrace.kafka_local.errors import LocalKafkaError
from tailrace.kafka_local.jars import classpath
from tailrace.testing.cluster import NatsCluster
from tailrace.testing.resolve import resolve
from tailrace.testing.servers import NatsServer


@pytest.fixture
def text(cli: Any) -> Path:
    """An input whose bytes are not its characters."""
    file: Path = cli.folder / "input.txt"
    file.write_text("".join(f"{number} — naïve\n" for number in range(300)), encoding="utf-8")
    return file


def leftovers(folder: Path) -> list[str]:
    """Processes whose command line names the folder: gateways, workers, supervisors and their servers."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if str(folder) in command and process.pid != os.getpid():
            found.append(command)
    return found


def await_gone(broker: Path) -> None:
    """A user's own folder may have other users: its server ends when it sees that none is left."""
    deadline = time.monotonic() + 30
    while leftovers(broker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers(broker) == []


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo makes its folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_the_bytes_survive_a_killed_gateway_and_a_killed_broker(cli: Any, text: Path, temporary: Path) -> None:
    done = cli("demo", "--exit", "--seed", "3", "--input", str(text), "--seconds", "5", "--json")
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    data = text.read_bytes()
    assert told["sha256_received"] == told["sha256_written"] == hashlib.sha256(data).hexdigest()
    assert told["received"] == told["bytes"] == len(data)
    assert [kill["what"] for kill in told["kills"]] == ["gateway", "broker"]
    assert all(kill["percent"] >= 10 for kill in told["kills"])
    assert told["kills"][0]["live"]
    assert told["reconnects"] >= 1
    said = done.stderr.decode()
    assert said.count("SIGKILL") == 2
    assert "Equal, byte for byte" in said
    assert "\x1b" not in said
    assert leftovers(temporary) == []
    assert list(temporary.iterdir()) == []


def test_a_broker_of_somebody_elses_is_left_alone(cli: Any, text: Path, server: NatsServer) -> None:
    pid = server.pid
    at = ("--store", server.url, "--input", str(text), "--seconds", "3")
    done = cli("demo", "--exit", *at)
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout.decode()
    assert "only the gateway will be killed" in said
    assert said.count("SIGKILL") == 1
    assert psutil.pid_exists(pid)


@pytest.fixture(params=["nats", "nats-r3", "kafka", "redis"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a broker that is not the demo's."""
    if request.param == "nats-r3":
        with NatsCluster(tmp_path / "broker") as cluster:
            yield cluster.url
    else:
        with resolve(request.param, tmp_path / "broker", os.environ, containers=False) as url:
            yield url


@pytest.mark.slow
async def test_the_bytes_survive_on_each_broker(cli: Any, text: Path, temporary: Path, foreign: str) -> None:
    early = ("--seed", "3", "--seconds", "8")  # the kill falls into the first quarter
    done = await asyncio.to_thread(cli, "demo", "--exit", "--input", str(text), *early, "--store", foreign, "--json")
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert told["sha256_received"] == told["sha256_written"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert [(kill["what"], kill["live"]) for kill in told["kills"]] == [("gateway", True)]
    assert "only the gateway will be killed" in done.stderr.decode()
    async with await connect(foreign) as store:  # it lives, and has it
        assert b"".join([entry.chunk async for entry in store.read(told["run"])]) == text.read_bytes()
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_embedded_kafka_is_killed_too(cli: Any, text: Path, tmp_path: Path, temporary: Path) -> None:
    try:
        classpath()
    except LocalKafkaError as error:
        pytest.skip(f"{error} ({error.hint})")
    store = f"embedded+kafka://{tmp_path / 'kafka'}"
    arguments = ("demo", "--exit", "--seed", "3", "--input", str(text), "--seconds", "20", "--store", store, "--json")
    done = cli(*arguments, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert told["sha256_received"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert [(kill["what"], kill["live"]) for kill in told["kills"]] == [("gateway", True), ("broker", True)]
    await_gone(tmp_path / "kafka")


def test_the_curl_commands_work_and_ctrl_c_ends_it_all(
    cli: Any, text: Path, tmp_path: Path, temporary: Path, shell: Callable[[str], str]
) -> None:
    broker = tmp_path / "broker"
    demo = cli.start("demo", "--input", str(text), "--seconds", "2", "--store", f"embedded://{broker}")
    lines = []
    while not (lines and "/status" in lines[-1]):
        line = demo.stdout.readline().decode()
        assert line, demo.stderr.read().decode()
        lines.append(line.strip())
    start, resume, status = [line for line in lines if line.startswith("curl")]
    whole = shell(start)
    assert whole[20:] == shell(resume)
    assert json.loads(shell(status))["status"] == "done"
    demo.send_signal(signal.SIGINT)
    assert demo.wait() == 0
    assert leftovers(temporary) == list(temporary.iterdir()) == []
    await_gone(broker)


@pytest.fixture
def shell() -> Callable[[str], str]:
    """Runs one of the printed commands."""

    def run(command: str) -> str:
        done = subprocess.run([*shlex.split(command), "-sS"], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return run


@pytest.mark.parametrize(("moment", "number"), [("A gateway serves", signal.SIGINT), ("SIGKILL", signal.SIGTERM)])
def test_an_interrupted_demo_leaves_nothing(
    cli: Any, text: Path, temporary: Path, moment: str, number: signal.Signals
) -> None:
    demo = cli.start("demo", "--exit", "--input", str(text), "--seconds", "4")
    while moment not in (line := demo.stdout.readline().decode()):
        assert line, demo.stderr.read().decode()
    demo.send_signal(number)
    assert demo.wait() == 128 + number
    assert demo.stderr.read() == b""
    assert leftovers(temporary) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_demo_leaves_no_process(cli: Any, text: Path, temporary: Path) -> None:
    demo = cli.start("demo", "--exit", "--input", str(text), "--seconds", "60")
    while "A gateway serves" not in (line := demo.stdout.readline().decode()):
        assert line, demo.stderr.read().decode()
    assert len(leftovers(temporary)) > 2
    demo.kill()
    await_gone(temporary)


def test_a_demo_that_cannot_start_says_why(cli: Any, temporary: Path, complaint: Callable[[Any], str]) -> None:
    done = cli("demo", "--exit", "--store", "nats://127.0.0.1:1")
    assert done.returncode == 2
    assert "did not start" in complaint(done)
    assert leftovers(temporary) == []
    assert list(temporary.iterdir()) == []
