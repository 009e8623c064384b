"""Whether processes have ended that nobody here waits for."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]


def is_over(process: psutil.Process) -> bool:
    """Also where its parent has not waited for it yet. It may end between the two questions."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
