"""How a command runs: its loop, what a signal does to it, its settings and its store.

Rules. A signal cancels the command, which cleans up and ends with 128 plus its number (130 for Ctrl-C), unless the
command takes signals over (`Stop.take_over`) to drain. Nothing here raises out of `run` but what `tailrace.cli` shows
as one line.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tailrace import logs
from tailrace.errors import TailraceError
from tailrace.settings import Settings

if TYPE_CHECKING:
    from tailrace.store import LogStore

LAST_WAIT = 2.0  # seconds, for tasks that are cancelled when all is done
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Usage(TailraceError):
    """The command was called in a way that makes no sense."""

    code = "usage"
    hint = "`tailrace COMMAND --help` shows how."


class Stop:
    """The signals that ask this process to end. ``signal`` is the first one that came, or None."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.signal: int | None = None
        self._task = task
        self._handler: Callable[[int], None] | None = None

    def take_over(self, handler: Callable[[int], None] | None) -> None:
        """Call ``handler`` for every signal from now on, instead of cancelling the command; None undoes it."""
        self._handler = handler

    @property
    def status(self) -> int:
        """The exit status of a service that was asked to end and did so in order: 0, or 130 after Ctrl-C."""
        return 128 + signal.SIGINT if self.signal == signal.SIGINT else 0

    def __call__(self, number: int) -> None:
        self.signal = self.signal or number
        if self._handler is not None:
            self._handler(number)
        else:
            self._task.cancel()


def run(command: Callable[[Stop], Coroutine[Any, Any, int]]) -> int:
    """Run a command to its exit status, on uvloop where there is one."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        status = runner.run(_signalled(command))
        if runner.run(_is_held()):
            # the runner would wait for it, for ever; all that was to be closed is closed
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return status


async def _is_held() -> bool:
    """Whether a task ignores its cancellation: a handler of the user's may."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    return bool(left) and bool((await asyncio.wait(left, timeout=LAST_WAIT))[1])


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _signalled(command: Callable[[Stop], Coroutine[Any, Any, int]]) -> int:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    loop.set_exception_handler(_unheard)
    stop = Stop(task)
    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await command(stop)
    except asyncio.CancelledError:
        if stop.signal is None:
            raise
        return 128 + stop.signal
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A connection, or the look-up of a name, that was given up may fail behind its caller's back (uvloop tells): that
    is nobody's news."""
    given_up = isinstance(context.get("exception"), OSError) and "never retrieved" in str(context.get("message"))
    if not given_up:
        loop.default_exception_handler(context)


@asynccontextmanager
async def opened(settings: Settings, *, shared: bool = True) -> AsyncIterator[LogStore]:
    """The store of the settings. ``shared``: the command is of use only where other processes see the same streams.
    Raises `tailrace.errors.BrokerError`, `Usage`."""
    from tailrace.connect import connect

    if shared and settings.store.lower().startswith("memory:"):
        raise Usage(
            "memory:// lives in one process, and no other would see these streams",
            hint="Use --store embedded:// or nats://…; `tailrace up --store memory://` runs everything in one.",
        )
    store = await connect(settings.store, settings.store_options())
    try:
        yield store
    finally:
        await store.aclose()


def quiet_logs(settings: Settings) -> None:
    """The logs of a command that a person or a script runs: what it has to say, it says itself."""
    logs.configure("debug" if settings.log_level == "debug" else "error", settings.log_format)
