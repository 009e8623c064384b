"""Tailrace beside upstream on Node: the same programs and bytes, the same outcome, in both dialects."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from differences import DIFFERENCES
from fuzz import Fuzz, examples
from hypothesis import HealthCheck, Phase, given, settings
from streams import CODES, FORMATS, MUTATIONS, UI_EVENTS
from upstream import Upstream

pytestmark = pytest.mark.node

PROGRAMS = 2000


def fuzzed(upstream: Upstream, programs: int) -> Fuzz:
    """A run of so many programs, the same ones every time."""
    fuzz = Fuzz(upstream)

    @settings(
        max_examples=programs,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(examples)
    def check(example: Any) -> None:
        fuzz.example(example)

    fuzz.run(check)
    return fuzz


def test_a_few_programs(upstream: Upstream) -> None:
    fuzz = fuzzed(upstream, 60)
    assert fuzz.seen["programs"] >= 60
    assert fuzz.fired


FLOORS = {
    "programs": PROGRAMS,
    **{
        f"op {name}": 100
        for name in (
            *("appendText", "appendReasoning", "appendSummary", "textPart", "reasoningPart", "append", "toolPart"),
            *("args", "argsClose", "response", "close", "source", "file", "data", "enqueue", "merge", "end", "throw"),
        )
    },
    **{
        f"{where} chunk {name}": 5 if where == "op" else 20
        for where in ("op", "stray", "written")
        for name in (
            *(
                "part-start",
                "part-finish",
                "tool-call-args-text-finish",
                "text-delta",
                "result",
                "error",
                "annotations",
            ),
            *("data", "step-start", "step-finish", "message-finish", "update-state"),
        )
    },
    **{
        f"{where} part {name}": 10
        for where in ("stray", "written")
        for name in ("text", "reasoning", "tool-call", "source", "file", "data", "step")
    },
    **{f"{format} bytes": 40 for format in FORMATS},
    **{f"mutation {name}": 10 for name in MUTATIONS},
    **{f"code {code}": 5 for code in CODES},
    **{f"event {kind}": 3 for kind in UI_EVENTS},
    **{f"job {name}": 200 for name in ("program", "encode", "accumulate", "decode", "object", "partial", "json")},
    "operation set": 100,
    "operation append-text": 40,
    "merge depth 1": 100,
    "merge depth 2": 20,
    "parallel tools": 200,
    "parent": 500,
    "tool with args": 50,
    "tool with response": 50,
    "lone surrogate": 500,
    "op nested path": 10,
    "stray nested path": 20,
    "strict=False": 50,
    "stream cut in lines": 200,
    "stream unchanged": 200,
    "decode ends well": 300,
    "decode ends in an error": 200,
}
"""How often a run of PROGRAMS meets each operation at least."""

FIRED = {"left-open": 100, "program-order": 50, "wrong-payload": 5}
"""The differences that turn up often enough to be counted on; each one has its own test in test_differences.py."""


def missed(counted: Counter[str], floors: dict[str, int]) -> list[str]:
    return [f"{name}: {counted[name]} of {floor}" for name, floor in floors.items() if counted[name] < floor]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_programs_of_every_kind(upstream: Upstream) -> None:
    fuzz = fuzzed(upstream, PROGRAMS)
    assert missed(fuzz.seen, FLOORS) == []
    assert missed(fuzz.fired, FIRED) == []
    assert set(fuzz.fired) <= {difference.name for difference in DIFFERENCES}


def test_a_missed_floor_is_seen() -> None:
    assert missed(Counter({"op end": 3}), {"op end": 4, "op merge": 0}) == ["op end: 3 of 4"]
