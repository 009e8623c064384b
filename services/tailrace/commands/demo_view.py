"""What the demo shows: on a terminal a live bar with a mark at each kill, elsewhere plain lines."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

WIDTH = 48
STEP = 10  # percent between two plain lines


class _Bar(ProgressColumn):
    """A bar with the kills as marks in it."""

    max_refresh = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[int, str] = {}

    def mark(self, fraction: float, sign: str) -> None:
        self.marks[min(WIDTH - 1, int(fraction * WIDTH))] = sign

    def render(self, task: Task) -> Text:
        filled = int(WIDTH * task.completed / (task.total or 1))
        bar = Text("".join(self.marks.get(index, "━") for index in range(WIDTH)), "bright_black")
        bar.stylize("green", 0, filled)
        for index in self.marks:
            bar.stylize("bold red", index, index + 1)
        return bar


class View:
    """Everything that is said goes to stdout, or to stderr where stdout is for ``--json``. A context manager."""

    def __init__(self, total: int, *, to_stderr: bool = False) -> None:
        stream = sys.stderr if to_stderr else sys.stdout
        self.console = Console(file=stream, highlight=False, soft_wrap=True, markup=False)
        self._total = total
        self._said = 0
        self._bar = _Bar()
        self._progress = Progress(
            SpinnerColumn(),
            self._bar,
            TextColumn("{task.percentage:>3.0f} %  {task.completed:,} of {task.total:,} bytes"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("bytes", total=total)

    def say(self, text: str, style: str = "") -> None:
        self._progress.console.print(text, style=style or None, soft_wrap=True, markup=False, highlight=False)
        self.console.file.flush()

    def follow(self) -> None:
        """Begin to show the bar."""
        self._progress.start()

    def received(self, count: int) -> None:
        """``count`` bytes in all are here."""
        self._progress.update(self._task, completed=count)
        percent = 100 * count // self._total
        if self._progress.disable and percent >= self._said + STEP:
            self._said = percent - percent % STEP
            self.say(f"  {self._said:3} %  {count:,} of {self._total:,} bytes")

    def killed(self, count: int, text: str) -> None:
        """A kill, when ``count`` bytes were here."""
        self._bar.mark(count / self._total, "✗")
        self.say(f"✗ {text}", "bold red")

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()

    def table(self, columns: list[str], rows: list[list[str]]) -> None:
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            shown.add_column(column, no_wrap=True)
        for row in rows:
            shown.add_row(*row)
        self.console.print(shown)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
