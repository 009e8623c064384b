"""One Kafka node for as long as a caller wants it: `tailrace kafka run`.

The node ends with the task that serves it. On Linux the kernel ends it with this process too, however that ends, so
call this from the main thread's loop: the tie belongs to the thread that starts the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tailrace._ports import choose_port, is_free
from tailrace._server_directory import EmbeddedError, ServerDirectory, try_lock
from tailrace._ties import tie_by_kernel
from tailrace.kafka_local.errors import LocalKafkaError, reason
from tailrace.kafka_local.node import HOST, Node

LOOK_INTERVAL = 0.05
PARENT_INTERVAL = 0.5
STOP_LIMIT = 15.0


async def serve(directory: Path, port: int, ready: Callable[[str], object]) -> None:
    """Run a node on ``port`` (0: a free one) with its data in ``directory``; ``ready`` is told its URL. Returns when
    the process that started this one is gone. Raises LocalKafkaError."""
    if port and not is_free(port):
        raise LocalKafkaError(f"Port {port} is taken", hint="Name another one with --port, or 0 for a free one")
    parent = os.getppid()
    home = ServerDirectory(await asyncio.to_thread(_absolute, directory))
    try:
        home.prepare()
    except EmbeddedError as error:
        raise LocalKafkaError(
            f"Kafka's directory {home.path} cannot be written: {error.__cause__ or error}",
            hint="Make it writable, or name another one with --data",
        ) from error
    lock = try_lock(home.server_lock)
    if lock is None:
        raise LocalKafkaError(f"A server runs on {home.path} already", hint="Use that one, or name another folder")
    try:
        await _serve(home, lock, port, ready, parent)
    finally:
        os.close(lock)


async def _serve(home: ServerDirectory, lock: int, port: int, ready: Callable[[str], object], parent: int) -> None:
    node = Node(home.path, port or choose_port(None, None), {1: choose_port(None, None)})
    command = await asyncio.to_thread(node.prepare)
    with home.log.open("ab") as log:
        began = home.log_size()
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=home.path,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),  # the folder is free when the node is gone, not when this process is
            start_new_session=True,  # Ctrl-C is for this process, which ends the node in order
            preexec_fn=tie_by_kernel() if sys.platform == "linux" else None,
        )
    ended = asyncio.create_task(process.wait())
    try:
        while not await asyncio.to_thread(node.is_ready):
            await _pause(ended, LOOK_INTERVAL, home, began)
        ready(f"kafka://{HOST}:{node.port}")
        while os.getppid() == parent:
            await _pause(ended, PARENT_INTERVAL, home, began)
    finally:
        await _stop(process, ended)


def _absolute(directory: Path) -> Path:
    return directory.expanduser().absolute()


async def _pause(ended: asyncio.Task[int], seconds: float, home: ServerDirectory, began: int) -> None:
    await asyncio.wait({ended}, timeout=seconds)
    if ended.done():
        said = home.log.read_bytes()[began:].decode("utf-8", "replace")
        raise LocalKafkaError(
            f"Kafka ended with status {ended.result()}: {reason(said)}", hint=f"Mend what {home.log} names"
        )


async def _stop(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
    if not ended.done():
        process.terminate()
        await asyncio.wait({ended}, timeout=STOP_LIMIT)
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await ended
