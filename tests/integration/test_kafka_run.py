"""`tailrace kafka run`: one node that is ready when it says so, and ends with whoever started it."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tailrace.embedded import EmbeddedError, attach
from tailrace.kafka_local import metadata
from tailrace.testing.ends import is_over

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

RUN = [sys.executable, "-m", "tailrace.cli", "kafka", "run", "--data"]
PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline(), flush=True)
child.wait()
"""


async def ready(process: subprocess.Popen[str]) -> int:
    """The port of the line that says that it is ready."""
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    assert line.startswith("kafka ready on kafka://127.0.0.1:"), line
    return int(line.rpartition(":")[2])


async def test_it_is_ready_when_it_says_so_and_ends_in_order_when_told(tmp_path: Path) -> None:
    with subprocess.Popen([*RUN, str(tmp_path / "data"), "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        port = await ready(process)
        answer = metadata.ask("127.0.0.1", port)
        assert answer is not None
        assert answer.brokers == {1: port}
        (node,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 128 + signal.SIGTERM
        assert not node.is_running()


@pytest.mark.parametrize("killed", ["parent", "command"])
async def test_a_sigkill_leaves_no_node_behind(tmp_path: Path, killed: str) -> None:
    command = [sys.executable, "-c", PARENT, *RUN, str(tmp_path / "data"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        await ready(parent)
        (runner,) = psutil.Process(parent.pid).children()
        (node,) = runner.children()
        (parent if killed == "parent" else runner).kill()
        for process in (runner, node):
            while not is_over(process):
                await asyncio.sleep(0.05)


async def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*RUN, str(tmp_path / "data"), "--port", str(port)]
        ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.strip() == (
        f"tailrace: Port {port} is taken [kafka-start]. Name another one with --port, or 0 for a free one"
    )


async def test_a_folder_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [*RUN, str(tmp_path / "file" / "data"), "--port", "0"]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert f"Kafka's directory {tmp_path}/file/data cannot be written" in ran.stderr
    assert "--data" in ran.stderr


async def test_two_on_one_folder_are_refused_in_one_line(tmp_path: Path) -> None:
    command = [*RUN, str(tmp_path / "data"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        port = await ready(first)
        ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert ran.returncode == 2
        assert ran.stderr.count("\n") == 1, ran.stderr
        assert "already [kafka-start]" in ran.stderr
        with pytest.raises(EmbeddedError, match="runs a server that is not an embedded one") as caught:
            await attach(tmp_path / "data", kind="kafka")
        assert caught.value.code == "embedded-options"
        assert metadata.ask("127.0.0.1", port) is not None
        first.terminate()
