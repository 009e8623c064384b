"""Installs the npm packages of this folder, exactly as locked, once; afterwards nothing is asked of any network.

The lock file names packages, versions and digests, and no registry: whichever one npm is set up with gives the same
bytes or is refused. What is installed stays under ``build/node``, by the lock's own digest.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "node"


class NoNode(Exception):
    """Node or npm is not there, or npm could not get the packages; says which."""


def node() -> str:
    """The path of Node. Raises NoNode."""
    found = shutil.which("node")
    if found is None:
        raise NoNode("Node is not installed (https://nodejs.org, 20 or newer)")
    return found


def installed() -> Path:
    """The ``node_modules`` folder, installed now if it was not yet. Raises NoNode."""
    node()
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in ("package.json", "package-lock.json")))
    folder = CACHE / digest.hexdigest()[:16]
    ready = folder / "ready"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes start side by side
        if not ready.exists():
            _install(folder)
            ready.touch()
    return folder / "node_modules"


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise NoNode("npm is not installed (it comes with Node)")
    folder.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--loglevel=error"]
    cached = ["--prefer-offline", f"--cache={CACHE / 'npm'}"]
    done = subprocess.run([npm, "ci", *quiet, *cached], cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise NoNode(f"npm ci failed: {done.stderr.strip()[-2000:]}")
