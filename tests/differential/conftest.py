"""One Node process for all differential tests of a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "node"))

from install import NoNode
from upstream import Upstream


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    try:
        running = Upstream()
    except NoNode as missing:
        pytest.skip(str(missing))
    with running:
        yield running
