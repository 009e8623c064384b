"""docs/stores.md says what each store declares; this compares it with the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from tailrace.connect import _OPENERS
from tailrace.contracts import Capabilities
from tailrace.jetstream import CAPABILITIES as JETSTREAM
from tailrace.kafka import CAPABILITIES as KAFKA
from tailrace.memory import CAPABILITIES as MEMORY
from tailrace.redis import CAPABILITIES as REDIS

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"
STORES = {"memory": MEMORY, "jetstream": JETSTREAM, "kafka": KAFKA, "redis": REDIS}


def section(name: str) -> str:
    return PAGE.read_text(encoding="utf-8").partition(f"## {name}\n")[2].partition("\n## ")[0]


def test_the_table_has_every_store_with_every_capability() -> None:
    flags = [field.name for field in fields(Capabilities)]
    header, _, *rows = re.findall(r"^\|.*\|$", section("Capabilities"), re.MULTILINE)
    assert header == f"| store | {' | '.join(f'`{flag}`' for flag in flags)} |"
    yes = {True: "yes", False: "no"}
    assert rows == [
        f"| `{name}` | {' | '.join(yes[getattr(declared, flag)] for flag in flags)} |"
        for name, declared in STORES.items()
    ]
    assert re.findall(r"^- `(\w+)`: ", section("Capabilities"), re.MULTILINE) == flags


def test_the_page_names_every_scheme() -> None:
    named = set(re.findall(r"`([a-z+]+)://`", section("Side by side")))
    assert named == set(_OPENERS)
