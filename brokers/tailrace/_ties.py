"""A child process that ends with its parent, whatever way that ends."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

from tailrace._server_directory import ServerDirectory, is_locked

PR_SET_PDEATHSIG = 1


def tie_by_kernel() -> Callable[[], None]:
    """What the server's process runs first on Linux: from then on it is killed when the supervisor ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def tie() -> None:
        # The parent may have ended before the call, and then no signal will come.
        if prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != parent:
            os._exit(1)

    return tie


def tie_where_possible() -> Callable[[], None] | None:
    """`tie_by_kernel`, or None where it cannot be had: the signal comes when the thread that starts the process ends,
    so only the main thread's may be used."""
    is_main = threading.current_thread() is threading.main_thread()
    return tie_by_kernel() if sys.platform == "linux" and is_main else None


def tie_by_watchdog(directory: ServerDirectory, lock: int) -> Callable[[], None]:
    """The same elsewhere: a process that learns the server's pid from a pipe and kills it when the pipe ends."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        os.close(lock)
        pid = 0
        while told := os.read(reader, 512):
            pid = int(told.split()[-1])
        # The lock says whether that server still runs; its pid alone could be another process by now.
        if pid and is_locked(directory.server_lock):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)
    os.close(reader)
    # Told before it becomes the server, so that no moment is left in which nobody knows of it.
    return lambda: void(os.write(writer, b"%d\n" % os.getpid()))


def void(_: object) -> None:
    """Drop a value."""
