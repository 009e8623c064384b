"""docs/formats.md and the pages of docs/formats: their examples are read out of them and run, both ways."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailrace.message.chunks import chunk_from_json
from tailrace.wire import FORMATS, format_of
from tailrace.wire.errors import JsonTooDeep
from tailrace.wire.jsjson import MAX_DEPTH, parse, stringify
from tailrace.wire.object_stream import HEADERS, STATES, object_stream

DOCS = Path(__file__).parents[3] / "docs"
INDEX = DOCS / "formats.md"
PAGES = sorted((DOCS / "formats").glob("*.md"))
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| ([A-Za-z][A-Za-z-]*) \| `([^`]+)`", re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(match["info"], match["text"]) for match in FENCE.finditer(page.read_text(encoding="utf-8"))]


SHARED = dict(blocks(INDEX))["jsonl chunks"]
FOUND = {info: text for page in PAGES for info, text in blocks(page) if not info.startswith("python")}
NAMES = [*FORMATS, *(name for name in STATES if not name.endswith("0.3.44"))]
SAME = {"assistant-transport;v=0.3.15": "assistant-transport"}  # as its page says


def the_bytes(name: str) -> bytes:
    text = FOUND[f"text bytes={SAME.get(name, name)}"]
    return (text.removesuffix("\n") if name.startswith("plain-text") else text).encode()


def page_of(name: str) -> str:
    base = name.partition(";")[0]
    return (DOCS / "formats" / f"{'text' if base == 'plain-text' else base}.md").read_text(encoding="utf-8")


def python(page: Path) -> list[dict[str, Any]]:
    """What each Python block of the page defines."""
    defined = []
    for info, text in blocks(page):
        if info == "python":
            names: dict[str, Any] = {"__name__": "page"}
            exec(text, names)
            defined.append(names)
    return defined


def test_every_format_has_its_page_and_example() -> None:
    shown = {info.partition("=")[2] for info in FOUND if info.startswith("text bytes=")}
    assert shown == {"bytes", *NAMES} - SAME.keys()
    assert "The bytes are the same." in page_of("assistant-transport")
    index = INDEX.read_text(encoding="utf-8")
    assert {f"formats/{page.name}" for page in PAGES} <= set(re.findall(r"\]\((formats/[^)]+)\)", index))
    for page in PAGES:
        assert "## Ends" in page.read_text(encoding="utf-8"), page
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("name", FORMATS)
def test_the_chunks_of_the_page_become_its_bytes(name: str) -> None:
    chunks = FOUND.get(f"jsonl chunks={name}", SHARED)
    encoder = FORMATS[name].encoder()
    data = [encoder.encode(chunk_from_json(parse(line))) for line in chunks.splitlines()]
    assert b"".join([*data, encoder.finish()]) == the_bytes(name)


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_the_page_are_read_as_it_says(name: str, size: int) -> None:
    makers: dict[str, Callable[[], Any]] = {name: format.decoder for name, format in STATES.items()}
    decoder = makers[name]() if name in makers else FORMATS[name].decoder()
    data = the_bytes(name)
    read = [chunk for at in range(0, len(data), size) for chunk in decoder.feed(data[at : at + size])]
    lines = [stringify(chunk.to_json()) for chunk in [*read, *decoder.close()]]
    expected = FOUND.get(f"jsonl read={name}", FOUND.get(f"jsonl chunks={name}", SHARED)).splitlines()
    if name.startswith("plain-text") and size == 1:  # the pieces are the deltas
        lines, expected = [
            "".join(json.loads(line).get("textDelta", "") for line in part) for part in (lines, expected)
        ]
    assert lines == expected
    assert decoder.drops == []


@pytest.mark.parametrize("name", [name for name in FORMATS if ";" not in name])
def test_the_headers_of_the_page_are_the_formats(name: str) -> None:
    listed = {key: value for key, value in ROW.findall(page_of(name)) if not (name == "plain-text" and key[0] == "x")}
    assert listed == dict(FORMATS[name].headers)


def test_the_headers_of_the_index_name_the_formats() -> None:
    index = INDEX.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(text/[a-z-]+)` \| (?:`([\w-]+): ([\w/-]+)`)? ?\| `([a-z-]+)` \|$", index, re.MULTILINE)
    assert len(rows) == 5
    for content_type, key, value, name in rows:
        expected = None if name == "object-stream" else FORMATS[name]
        assert format_of(content_type, {key: value} if key else {}) is expected
    assert dict(ROW.findall(page_of("object-stream"))) == dict(HEADERS)


async def test_the_handler_of_the_object_stream_writes_its_bytes() -> None:
    (names,) = python(DOCS / "formats" / "object-stream.md")
    written = [frame async for frame in names["forecast"]("Oslo")]
    assert b"".join(written) == the_bytes("object-stream")
    legacy = [frame async for frame in object_stream(names["steps"]("Oslo"), legacy=True)]
    assert b"".join(legacy) == the_bytes("object-stream;v=0.3.15")
    assert names["forecast"].content_type == "text/event-stream"


async def test_the_handler_of_the_bytes_writes_them() -> None:
    (names,) = python(DOCS / "formats" / "bytes.md")
    assert b"".join([part async for part in names["rows"](3)]) == the_bytes("bytes")


def test_the_index_runs_and_names_the_depth() -> None:
    assert len(python(INDEX)) == 2
    assert f"deeper than {MAX_DEPTH} levels" in INDEX.read_text(encoding="utf-8")
    with pytest.raises(JsonTooDeep):
        parse("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
