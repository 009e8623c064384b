"""What the decorator reads from a function, what it refuses, and how chunks are cut."""

import asyncio
import json
import sys
import types
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tailrace.errors import InvalidInput, MissingExtra
from tailrace.worker import builtin
from tailrace.worker.builtin import EchoInput, echo
from tailrace.worker.handlers import BYTES, TEXT, Handler, InvalidHandler, RunContext, by_name, handler, load, pieces
from tailrace.worker.outlet import Outlet, OutletClosed


class Prompt(BaseModel):
    text: str
    times: int = 1


@handler("shout", headers={"x-kind": "loud"})
async def shout(input: Prompt, run: RunContext) -> AsyncIterator[str]:
    for _ in range(input.times):
        yield f"{run.stream_id}:{input.text.upper()}"


async def bare(input: Prompt) -> AsyncGenerator[bytes, None]:
    yield input.text.encode()


several = [shout, handler("bare")(bare)]
CONTEXT = RunContext("s", "shout")


async def collect(one: Handler, value: object, context: RunContext = CONTEXT) -> list[bytes | str]:
    return [chunk async for chunk in one.start(value, context)]


async def test_a_handler_is_read_from_its_function() -> None:
    assert (shout.name, shout.policy, shout.content_type) == ("shout", "fail", TEXT)
    assert shout.output("").text
    assert shout.headers == (("x-kind", "loud"),)
    assert shout.schema()["properties"].keys() == {"text", "times"}
    value = shout.parse(b'{"text": "hi", "times": 2}')
    assert value == Prompt(text="hi", times=2)
    assert await collect(shout, value) == ["s:HI", "s:HI"]


async def test_the_context_is_optional_and_bytes_are_octets() -> None:
    (one,) = load(f"{_module('bare_handlers', bare=bare)}:bare")
    assert (one.name, one.content_type, one.output("").text) == ("bare", BYTES, False)
    assert await collect(one, Prompt(text="é")) == ["é".encode()]
    assert [chunk async for chunk in one(Prompt(text="a"))] == [b"a"]


def test_what_the_decorator_is_told_wins() -> None:
    async def anything(value, run=None):  # type: ignore[no-untyped-def]
        yield b"{}"

    told = handler("any", input=dict[str, int], content_type="application/json", headers=[("a", "b")])(anything)
    assert (told.content_type, told.headers, told.takes_context) == ("application/json", (("a", "b"),), True)
    assert told.parse(b'{"n": 1}') == {"n": 1}


@pytest.mark.parametrize(
    ("text", "path", "kind"),
    [
        (b'{"times": 1}', ["text"], "missing"),
        (b'{"text": "a", "times": "many"}', ["times"], "int_parsing"),
        (b"[]", [], "model_type"),
        (b"not json", [], "json_invalid"),
        (b'{"text": "\xff"}', [], "json_invalid"),
    ],
)
def test_a_wrong_input_names_its_paths(text: bytes, path: list[str], kind: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        shout.parse(text)
    (found,) = caught.value.errors
    assert (found["path"], found["type"]) == (path, kind)
    assert json.loads(caught.value.message) == list(caught.value.errors)


def _no_generator() -> Any:
    async def function(input: Prompt) -> str:
        return input.text

    return function


def _synchronous() -> Any:
    def function(input: Prompt) -> Any:
        yield input.text

    return function


def _no_parameters() -> Any:
    async def function() -> AsyncIterator[str]:
        yield ""

    return function


def _three_parameters() -> Any:
    async def function(input: Prompt, run: RunContext, more: int) -> AsyncIterator[str]:
        yield ""

    return function


def _keyword_parameter() -> Any:
    async def function(input: Prompt, *, more: int) -> AsyncIterator[str]:
        yield ""

    return function


def _unannotated() -> Any:
    async def function(input):  # type: ignore[no-untyped-def]
        yield ""

    return function


def _unknown_annotation() -> Any:
    async def function(input: "Nowhere") -> AsyncIterator[str]:  # type: ignore[name-defined]  # noqa: F821
        yield ""

    return function


def _unfit_annotation() -> Any:
    async def function(input: Outlet) -> AsyncIterator[str]:
        yield ""

    return function


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_no_generator, "async generator"),
        (_synchronous, "async generator"),
        (_no_parameters, "one or two parameters"),
        (_three_parameters, "one or two parameters"),
        (_keyword_parameter, "one or two parameters"),
        (_unannotated, "annotate the parameter 'input'"),
        (_unknown_annotation, "cannot be resolved"),
        (_unfit_annotation, "cannot validate its input"),
    ],
)
def test_a_wrong_function_is_told_what_to_mend(make: Any, words: str) -> None:
    with pytest.raises(InvalidHandler, match=words) as caught:
        handler("wrong")(make())
    assert caught.value.code == "invalid-handler"
    assert caught.value.hint


def test_wrong_names_and_policies() -> None:
    for name in ("", "a b", "a.b", "x" * 65, "ü"):
        with pytest.raises(InvalidHandler, match="name"):
            handler(name)(bare)
    with pytest.raises(InvalidHandler, match="policy"):
        handler("bare", policy="continue")(bare)


def _module(name: str, **values: object) -> str:
    module = types.ModuleType(name)
    vars(module).update(values)
    sys.modules[name] = module
    return name


def test_load_finds_handlers_by_reference() -> None:
    name = _module("some_handlers", shout=shout, several=several, space=types.SimpleNamespace(inner=shout), number=1)
    assert load(f"{name}:shout") == [shout]
    assert load(f"{name}:space.inner") == [shout]
    assert load(f"{name}:several") == several
    assert load(name) == [shout]
    assert load("tailrace.worker.builtin:echo") == [echo]


@pytest.mark.parametrize(
    "reference", ["", ":", "no_such_module:x", "some_handlers:nothing", "some_handlers:number", ".relative:x", "json"]
)
def test_load_says_what_it_could_not_find(reference: str) -> None:
    _module("some_handlers", number=1)
    with pytest.raises(InvalidHandler, match="handler"):
        load(reference)


def test_a_module_that_raises_is_reported(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_handlers.py").write_text("raise OSError('no disk')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidHandler, match="OSError: no disk"):
        load("broken_handlers:x")


def test_two_handlers_cannot_share_a_name() -> None:
    assert by_name([shout, shout]) == {"shout": shout}
    with pytest.raises(InvalidHandler, match="Two handlers are named 'shout'"):
        by_name([shout, handler("shout")(bare)])


@given(st.text(), st.integers(4, 12))
def test_text_is_cut_between_characters(text: str, limit: int) -> None:
    data = text.encode()
    cut = pieces(text, limit, text=True)
    assert b"".join(cut) == data
    assert all(0 < len(piece) <= limit for piece in cut)
    assert "".join(piece.decode() for piece in cut) == text


@given(st.binary(), st.integers(1, 9), st.booleans())
def test_bytes_are_cut_whatever_they_are(data: bytes, limit: int, text: bool) -> None:
    for chunk in (data, bytearray(data), memoryview(data)):
        cut = pieces(chunk, limit, text=text)
        assert b"".join(cut) == data
        assert all(0 < len(piece) <= limit for piece in cut)
    assert pieces(data, None, text=text) == ([data] if data else [])


def test_what_is_no_chunk() -> None:
    assert pieces("", 4, text=True) == []
    with pytest.raises(TypeError, match="yielded int; yield bytes or str"):
        pieces(7, 4, text=True)
    with pytest.raises(UnicodeEncodeError):
        pieces("\ud800", 4, text=True)


@given(st.text(max_size=60), st.integers(1, 70))
def test_echo_gives_the_text_back(text: str, chunk: int) -> None:
    async def run() -> None:
        chunks = await collect(echo, EchoInput(text=text, chunk=chunk, rate=0))
        assert "".join(map(str, chunks)) == text
        assert all(len(piece) <= chunk for piece in chunks)

    asyncio.run(run())


@pytest.mark.parametrize(
    "text", [b'{"text":"a","rate":-1}', b'{"text":"a","chunk":0}', b'{"text":"a","speed":1}', b"{}"]
)
def test_echo_refuses_what_makes_no_sense(text: bytes) -> None:
    with pytest.raises(InvalidInput):
        echo.parse(text)


def test_a_missing_openai_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        builtin.openai()
    assert "pip install 'tailrace[openai]'" in caught.value.hint


async def test_an_outlet_holds_back_its_producer_and_gives_everything_at_once() -> None:
    outlet = Outlet(max_bytes=4, max_chunks=3)
    for _ in range(3):
        await outlet.put(b"a")
    for chunk in (b"b", b"cccc"):
        waiting = asyncio.create_task(outlet.put(chunk))
        await asyncio.sleep(0)
        assert not waiting.done()
        taken = await outlet.take()
        await waiting
    assert taken == [b"b"]
    assert await outlet.take() == [b"cccc"]
    await outlet.put(b"larger than all")
    outlet.close()
    outlet.close()
    assert await outlet.take() == [b"larger than all"]
    assert await outlet.take() == []
    with pytest.raises(OutletClosed):
        await outlet.put(b"late")


async def test_closing_an_outlet_frees_who_waits() -> None:
    outlet = Outlet(max_bytes=1, max_chunks=1)
    await outlet.put(b"a")
    putting = asyncio.create_task(outlet.put(b"b"))
    await asyncio.sleep(0)
    outlet.close()
    with pytest.raises(OutletClosed):
        await putting
    empty = Outlet(1, 1)
    taking = asyncio.create_task(empty.take())
    await asyncio.sleep(0)
    empty.close()
    assert await taking == []
