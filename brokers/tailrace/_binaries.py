"""Server programs that come in Python packages."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path


def packaged(distribution: str, name: str) -> Path | None:
    """The executable ``name`` that an installed distribution brought along."""
    try:
        package = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return None
    for file in package.files or ():
        path = Path(str(package.locate_file(file)))
        if file.name == name and os.access(path, os.X_OK):
            return path.resolve()
    return None
