"""Readers of a tool call's arguments: against the reference, over any cuts, and where the call ends too early."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.message.chunks import UNDEFINED
from tailrace.message.errors import ToolCallEnded
from tailrace.message.partial_json import parse_partial_json
from tailrace.message.tool_call import ToolResponse
from tailrace.message.tool_reader import ToolCallArgsReader, ToolCallReader, _field
from tailrace.wire.jsjson import join_surrogates, parse, stringify

GOLDEN = Path(__file__).parents[2] / "golden" / "tools.json.gz"
READS: list[Any] = parse(gzip.decompress(GOLDEN.read_bytes()).decode())["reads"]
METHODS = {"streamText": "stream_text", "streamValues": "stream_values", "forEach": "for_each"}


async def turns() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def collect(items: AsyncIterator[Any], out: list[Any]) -> None:
    async for item in items:
        out.append(item)


async def start(reader: ToolCallArgsReader, wanted: dict[str, Any], out: list[Any]) -> None:
    if wanted["kind"] == "get":
        out.append(await reader.get(*wanted["path"]))
    else:
        await collect(getattr(reader, METHODS[wanted["kind"]])(*wanted["path"]), out)


async def read(pieces: list[str], wanted: list[Any]) -> tuple[list[list[Any]], list[bool]]:
    """What the readers got, and which of them had ended before the arguments did."""
    reader = ToolCallArgsReader()
    out: list[list[Any]] = [[] for _ in wanted]
    tasks: dict[int, asyncio.Task[None]] = {}
    for step in range(len(pieces) + 1):
        for index, one in enumerate(wanted):
            if one["at"] == step:
                tasks[index] = asyncio.create_task(start(reader, one, out[index]))
        await turns()
        if step < len(pieces):
            reader.feed(pieces[step])
            await turns()
    before = [tasks[index].done() for index in range(len(wanted))]
    reader.finish()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks.values())
    return out, before


def news(kind: str, items: list[Any]) -> list[str]:
    """What tells a reader something: the reference also repeats a value, and gives empty texts and halves of a pair."""
    if kind == "streamText":
        return ["".join(map(str, items)).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")]
    texts = [stringify(item) if item is not UNDEFINED else "undefined" for item in items]
    if kind != "streamValues":
        return texts
    return [text for index, text in enumerate(texts) if index == 0 or texts[index - 1] != text]


def into_a_string(pieces: list[str], path: list[Any]) -> bool:
    """A difference on purpose: in JavaScript a string has indices, and so a path goes on into it."""
    said = [parse_partial_json("".join(pieces[:count])) for count in range(len(pieces) + 1)]
    return any(isinstance(_field(args, tuple(path[:end])), str) for args in said if args for end in range(len(path)))


def pair_is_cut(pieces: list[str]) -> bool:
    """Another one: half a character is not shown."""
    return any("\ud800" <= before[-1:] < "\udc00" <= after[:1] < "\ue000" for before, after in pairwise(pieces))


def began_on_bad_json(pieces: list[str], at: int) -> bool:
    """And a third: who begins when the text has turned bad is told what it said last, as those are who were there. In
    the reference that is what the last of those who were there was told, and nothing if there was none."""
    return parse_partial_json("".join(pieces[:at])) is None


async def test_every_recorded_reader() -> None:
    assert len(READS) > 250
    streamed = 0
    for case in READS:
        got, before = await read(case["pieces"], case["wanted"])
        for index, one in enumerate(case["wanted"]):
            recorded = [UNDEFINED if item == "undefined" else item[0] for item in case["out"][index]]
            kind = one["kind"]
            if into_a_string(case["pieces"], one["path"]) or began_on_bad_json(case["pieces"], one["at"]):
                continue
            if kind == "streamValues" and pair_is_cut(case["pieces"]):
                del got[index][:-1], recorded[:-1]
            assert news(kind, got[index]) == news(kind, recorded), (case["pieces"], one)
            assert before[index] == case["before"][index], (case["pieces"], one)
            streamed += len(got[index]) > 2
    assert streamed > 40


# ── any cuts ──

TEXTS = st.text(max_size=12) | st.sampled_from(["\ud83c", "🌍", '"\\', "tru"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ARGS = st.fixed_dictionaries({"text": TEXTS, "items": st.lists(VALUES, max_size=4), "rest": VALUES}).filter(
    lambda args: "proto" not in json.dumps(args)
)


@given(ARGS, st.booleans(), st.lists(st.integers(0, 200), max_size=12), st.integers(0, 3))
async def test_any_cuts_read_as_the_whole(args: dict[str, Any], ascii: bool, cuts: list[int], pauses: int) -> None:
    text = json.dumps(args, ensure_ascii=ascii)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    expected = parse(text)
    reader = ToolCallArgsReader()
    texts: list[Any] = []
    items: list[Any] = []
    values: list[Any] = []
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(collect(reader.stream_text("text"), texts))
        group.create_task(collect(reader.for_each("items"), items))
        group.create_task(collect(reader.stream_values(), values))
        whole, rest = group.create_task(reader.get()), group.create_task(reader.get("rest"))
        for begin, end in zip([0, *ends], ends, strict=False):
            reader.feed(text[begin:end])
            for _ in range(pauses):
                await asyncio.sleep(0)
        # all of it is complete: nobody waits for the end
        assert await whole == expected
        assert await rest == expected["rest"]
    assert "".join(texts) == join_surrogates(expected["text"])
    assert items == expected["items"]
    assert values[-1] == expected
    assert await reader.get() == expected  # one that starts late
    reader.finish()
    assert [piece async for piece in reader.stream_text("text")] == ([expected["text"]] if expected["text"] else [])


@given(st.text(alphabet='{}[]":,\\u0eftn-+.x 🌍\ud83c', max_size=40), st.lists(st.integers(0, 40), max_size=6))
async def test_no_text_hangs_a_reader(text: str, cuts: list[int]) -> None:
    reader = ToolCallArgsReader()
    got: list[Any] = []
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for path in ((), ("a",), (0,)):
            for method in (reader.stream_text, reader.stream_values, reader.for_each):
                group.create_task(collect(method(*path), got))
            group.create_task(reader.get(*path))
        for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(text)], strict=True):
            reader.feed(text[begin:end])
            await asyncio.sleep(0)
        reader.finish()


async def test_half_a_pair_waits_for_the_other() -> None:
    for pieces in (['{"a":"x\ud83c', '\udf0dy"}'], ['{"a":"x\\ud83c', '\\udf0dy"}']):
        reader = ToolCallArgsReader()
        texts: list[Any] = []
        task = asyncio.create_task(collect(reader.stream_text("a"), texts))
        for piece in pieces:
            await turns()
            reader.feed(piece)
        await asyncio.wait_for(task, 10)
        assert texts == ["x", "🌍y"]
        assert await reader.get("a") == "x🌍y"


async def test_a_half_that_stays_alone_comes_with_the_end() -> None:
    reader = ToolCallArgsReader()
    reader.feed('{"a":"x\\ud83c')
    texts: list[Any] = []
    task = asyncio.create_task(collect(reader.stream_text("a"), texts))
    await turns()
    assert texts == ["x"]
    reader.finish()
    await asyncio.wait_for(task, 10)
    assert texts == ["x", "\ud83c"]


# ── the end, and readers that go ──


async def test_an_early_end_is_no_end() -> None:
    call = ToolCallReader()
    call.args.feed('{"done":1,"text":"hal')
    texts: list[Any] = []
    streaming = asyncio.create_task(collect(call.args.stream_text("text"), texts))
    waiting = asyncio.create_task(call.response.get())
    await turns()
    call.end()
    assert await call.args.get("done") == 1
    for late in (streaming, waiting, call.args.get("text"), call.args.get("missing"), call.response.get()):
        with pytest.raises(ToolCallEnded):
            await late
    assert texts == ["hal"]


async def test_bad_json_leaves_what_was_said_before() -> None:
    reader = ToolCallArgsReader()
    reader.feed('{"a":1,"b":"x')
    reader.feed('"]')
    reader.finish()
    assert await reader.get("a") == 1
    assert await reader.get("b") == "x"
    assert await reader.get("c") is UNDEFINED
    reader.feed("}")  # after the end
    assert reader.text == '{"a":1,"b":"x"]'


async def test_a_cancelled_reader_and_one_that_stops_disturb_nobody() -> None:
    reader = ToolCallArgsReader()
    gone = asyncio.create_task(reader.get("a"))
    stays = asyncio.create_task(reader.get("a"))
    await turns()
    gone.cancel()
    reader.feed('{"l":[1,2,3')
    async for item in reader.for_each("l"):
        assert item == 1
        break
    reader.feed('],"a":true}')
    assert await asyncio.wait_for(stays, 10) is True
    assert [item async for item in reader.for_each("l")] == [1, 2, 3]


async def test_the_first_response_counts() -> None:
    call = ToolCallReader()
    call.response.settle(ToolResponse(1))
    call.response.settle(ToolResponse(2))
    call.end()
    assert (await call.response.get()).result == 1
