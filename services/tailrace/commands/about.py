"""What this installation is: `settings` and `version`."""

from __future__ import annotations

import platform

from tailrace.commands import options, output
from tailrace.version import __version__


def settings(json: options.Json = False) -> int:
    """Show every setting: its value, where the value came from, and what it means. Secrets are masked."""
    from tailrace.settings import describe, load

    rows = describe(load())
    if json:
        output.as_json([row._asdict() for row in rows])
    else:
        output.table(
            ("setting", "value", "source", "meaning"),
            ((row.name, _with_unit(row.value, row.unit), row.source, row.meaning) for row in rows),
        )
    return output.OK


def _with_unit(value: str, unit: str) -> str:
    return value if not unit or value == "none" else f"{value} {unit}"


def version(json: options.Json = False) -> int:
    """Show the version."""
    if json:
        output.as_json({"tailrace": __version__, "python": platform.python_version()})
    else:
        output.data(f"tailrace {__version__}")
    return output.OK
