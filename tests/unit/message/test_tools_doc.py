"""docs/tools.md: its code runs, and its table of errors is the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tailrace.message
from tailrace.message import public
from tailrace.message.errors import ToolError

PAGE = (Path(__file__).parents[3] / "docs" / "tools.md").read_text(encoding="utf-8")


async def test_its_code_runs() -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/tools.md", "exec", dont_inherit=True), names)
    examples = [value for name, value in names.items() if name.startswith("example_")]
    assert len(examples) == PAGE.count("async def example_") > 1
    for example in examples:
        await example()


def test_the_loop_in_it_is_that_of_the_example() -> None:
    (loop,) = re.findall(r"^```python example\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert (Path(__file__).parents[3] / "examples" / "tools.py").read_text(encoding="utf-8").endswith(f"\n\n{loop}")


def test_every_error_of_tools_is_told() -> None:
    told = dict(re.findall(r"^\| `([a-z-]+)` \| `(\w+)` \|", PAGE, re.MULTILINE))
    for error in ToolError.__subclasses__():
        assert told.pop(error.code) == error.__name__
    assert told == {"invalid-update": "InvalidUpdate"}


def test_every_public_name_is_there() -> None:
    assert len(public.__all__) == len(set(public.__all__)) > 60
    for name in public.__all__:
        assert getattr(tailrace.message, name) is getattr(public, name)
        assert name in dir(tailrace.message)
    assert not hasattr(tailrace.message, "annotations_of_nothing")
