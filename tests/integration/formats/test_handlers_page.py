"""docs/handlers.md does what it says: its handlers are served, its requests get the output that stands behind them."""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

from tailrace.formats import KNOWN
from tailrace.settings import Settings
from tailrace.worker import Pace, load
from tailrace.worker.builtin import recite
from tailrace.worker.recite import ReciteInput

PAGE = (Path(__file__).parents[3] / "docs" / "handlers.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(match["info"].strip(), match["text"]) for match in FENCE.finditer(PAGE)]
NAME = "page_on_handlers"


async def test_the_page_is_true(serve: Any) -> None:
    module = sys.modules[NAME] = types.ModuleType(NAME)
    try:
        exec("\n".join(text for info, text in BLOCKS if info == "python"), vars(module))
        tests = [one for name, one in vars(module).items() if name.startswith("test_") and inspect.isfunction(one)]
        assert [test.__name__ for test in tests] == ["test_it_counts", "test_it_says_the_temperature"]
        for test in tests:
            await test()
        service = await serve(*load(NAME), recite)
    finally:
        del sys.modules[NAME]
    others = [(info, text) for info, text in BLOCKS if info != "python"]
    assert [info for info, _ in others] == ["json run", "text output"] * (len(others) // 2)
    for (_, request), (_, output) in zip(others[::2], others[1::2], strict=True):
        response = await service.run(**json.loads(request))
        assert response.status_code == 200, response.text
        assert response.text.rstrip("\n") == output.rstrip("\n")


def rows(heading: str) -> list[list[str]]:
    section = PAGE.partition(f"{heading}\n")[2].partition("\n#")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]


def test_the_page_lists_every_format() -> None:
    named = {name for row in rows("### Formats")[2:] for name in re.findall("`([^`]+)`", row[0])}
    assert named == {name for name in KNOWN if ";" not in name} - {"bytes"}


def test_the_page_lists_every_line_of_a_script() -> None:
    named = {name for row in rows("## The handlers that ship")[2:] for name in re.findall("`([^`]+)`", row[0])}
    schema = json.dumps(ReciteInput.model_json_schema())
    kinds = set(re.findall('"(?:const|enum)": (?:\\["([a-z-]+)", "([a-z-]+)"\\]|"([a-z-]+)")', schema))
    listed = {kind for found in kinds for kind in found if kind}
    assert listed <= named
    assert {"text", "reasoning", "tool-call", "source", "file", "data", "chunk", "raise"} <= listed


def test_the_bounds_of_the_page_are_the_defaults() -> None:
    pace = Pace()
    assert (pace.pending_bytes, pace.pending_chunks, pace.stop_timeout) == (1 << 20, 1024, 5.0)
    assert pace.max_pending_bytes == Settings(_env_file=None).max_pending_bytes == 16 << 20
