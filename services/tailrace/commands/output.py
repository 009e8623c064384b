"""What commands print: data to stdout, everything else to stderr, an error as one line with what to do."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tailrace.errors import StreamEnded, TailraceError

OK, BAD_ENDING, FAILED = 0, 1, 2

_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f]")


class ReaderGone(Exception):
    """Whoever read standard output has closed it. Not an `OSError`: typer would make an exit of its own of that."""


class OutputFailed(TailraceError):
    """Standard output cannot be written."""

    code = "output-failed"
    hint = "Write to somewhere with room, and run the command again."

    @classmethod
    def of(cls, error: OSError) -> OutputFailed:
        return cls(f"Standard output cannot be written: {error.strerror}")


def data(text: str) -> None:
    """A line of data, out at once: somebody may wait for it behind a pipe. Raises `ReaderGone`, `OutputFailed`."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        raise OutputFailed.of(error) from None


def note(text: str) -> None:
    """A line for people, beside the data."""
    sys.stderr.write(f"tailrace: {one_line(text)}\n")
    sys.stderr.flush()


def as_json(value: object) -> None:
    data(json.dumps(value, ensure_ascii=False))


def one_line(text: str) -> str:
    """The text on one line, with nothing in it that a terminal would obey."""
    return visible(" ".join(text.split()))


def visible(text: str) -> str:
    """Control characters as ``\\u001b``: what a sender wrote is shown, never obeyed."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def error_line(error: TailraceError) -> str:
    """Message, code and hint on one line, whatever line ends they hold."""
    message = one_line(error.message).rstrip(".")
    return f"{message} [{error.code}]" + (f". {one_line(error.hint)}" if error.hint else "")


def exit_status(error: TailraceError) -> int:
    """1 for a stream's bad ending, 2 for whatever kept the command from its work."""
    return BAD_ENDING if isinstance(error, StreamEnded) else FAILED


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows for people on a terminal, tab-separated lines (without a head) for programs."""
    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    if not console.is_terminal:
        for row in rows:
            data("\t".join(row))
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console.print(shown, markup=False)


def fields(members: Mapping[str, Any]) -> None:
    """One ``name  value`` line a member, without those that are None."""
    given = {name: value for name, value in members.items() if value is not None}
    width = max(map(len, given), default=0)
    for name, value in given.items():
        data(f"{name:<{width}}  {one_line(str(value))}")
