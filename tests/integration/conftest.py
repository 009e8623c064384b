"""Real servers for the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.testing.servers import NatsServer


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server with JetStream: `.url`, `.pid`, `.kill()`, `.restart()`, `.pause()`, `.resume()`."""
    with NatsServer(tmp_path / "nats") as server:
        yield server
