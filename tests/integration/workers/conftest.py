"""The suite that every broker's workers pass, and what its tests are made of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("worker_suite", "worker_deployment")
