"""States that grow: what every snapshot says, what it shares with the others, and what it holds."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.message import growing_state
from tailrace.message.accumulator import AssistantMessageAccumulator
from tailrace.message.chunks import DataChunk, UpdateStateChunk
from tailrace.message.errors import InvalidUpdate
from tailrace.message.message import Message, Metadata
from tailrace.message.object_controller import ObjectChunk, ObjectStreamController
from tailrace.message.state import StateAccumulator
from tailrace.wire.jsjson import stringify
from tailrace.wire.object_stream import ObjectStreamDecoder, ObjectStreamEncoder

LONG = "x" * (growing_state.SHORT + 1)


def add(text: str, *path: str) -> dict[str, Any]:
    return {"type": "append-text", "path": list(path), "value": text}


def put(value: Any, *path: str) -> dict[str, Any]:
    return {"type": "set", "path": list(path), "value": value}


@pytest.fixture(params=[0, 3, growing_state.SHORT], autouse=True)
def short(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test with all texts growing, with some, and as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing_state, "SHORT", request.param)
        yield


# ── what they say ──


def naive(state: Any, operation: dict[str, Any]) -> Any:
    """The state with the operation, copied as a whole; ValueError for one that does not fit."""
    holder = [copy.deepcopy(state)]
    at: Any = 0
    container: Any = holder
    for key in operation["path"]:
        inner = container[at] if isinstance(container, list) and at < len(container) else None
        if isinstance(container, dict):
            inner = container.get(at)
        if inner is None:
            inner = {}
            put_at(container, at, inner)
        container, at = inner, key
        if isinstance(container, list):
            if not key.isdigit() or int(key) > len(container):
                raise ValueError(key)
            at = int(key)
        elif not isinstance(container, dict):
            raise ValueError(key)
    if operation["type"] == "set":
        put_at(container, at, copy.deepcopy(operation["value"]))
        return holder[0]
    old = container.get(at) if isinstance(container, dict) else container[at] if at < len(container) else None
    if not isinstance(old, str):
        raise ValueError(old)
    text = old + operation["value"]
    put_at(container, at, text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass"))
    return holder[0]


def put_at(container: Any, at: Any, value: Any) -> None:
    if isinstance(container, list) and at == len(container):
        container.append(value)
    else:
        container[at] = value


PATHS = st.lists(st.sampled_from(["a", "b", "0", "1"]), max_size=3)
TEXTS = st.sampled_from(["", "a", "tide", "é", "\ud83d", "\ude00", "🌊"])
VALUES = st.one_of(TEXTS, st.none(), st.just({"a": "x", "b": ["y", {"a": "z"}]}), st.just(["v", "w"]))
OPERATIONS = st.one_of(
    st.builds(lambda path, text: add(text, *path), PATHS, TEXTS),
    st.builds(lambda path, text: add(text, *path), PATHS, TEXTS),
    st.builds(lambda path, value: put(value, *path), PATHS, VALUES),
)


@given(
    operations=st.lists(OPERATIONS, max_size=40),
    initial=st.sampled_from(["", {"a": "x", "b": ["y", {"a": "z"}]}, ["v", {"a": {"b": "w"}}]]),
    every=st.integers(1, 7),
)
def test_every_snapshot_is_what_a_copy_of_all_would_be(
    operations: list[dict[str, Any]], initial: Any, every: int
) -> None:
    made: list[ObjectChunk] = []
    controller = ObjectStreamController(made.append, initial=initial)
    expected = [initial]
    read: list[tuple[Any, Any]] = []
    for number, operation in enumerate(operations):
        try:
            after = naive(expected[-1], operation)
        except ValueError:
            with pytest.raises(InvalidUpdate):
                controller.enqueue([operation])
            continue
        controller.enqueue([operation])
        expected.append(after)
        if number % every == 0:
            snapshot = made[-1].snapshot
            assert snapshot == after
            read.append((snapshot, after))
    assert [chunk.snapshot for chunk in made] == expected[1:]
    assert [stringify(chunk.snapshot) for chunk in made] == [stringify(state) for state in expected[1:]]
    assert all(snapshot == after for snapshot, after in read)  # what was read did not change
    for chunk in made:
        only_plain(chunk.snapshot)
    assert controller.state == expected[-1]


def only_plain(value: Any) -> None:
    assert type(value) in (str, dict, list, type(None))
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        only_plain(inner)


def test_a_frame_that_fails_leaves_the_text_as_it_was() -> None:
    state = StateAccumulator({"t": LONG})
    state.append([add("a", "t")])
    before = state.state
    with pytest.raises(InvalidUpdate):
        state.append([add("lost", "t"), add("x", "none")])
    assert state.state is before
    state.append([add("b", "t")])
    assert state.state == {"t": LONG + "ab"}
    assert before == {"t": LONG + "a"}


def test_a_text_that_grew_is_no_container_and_can_be_replaced() -> None:
    state = StateAccumulator({"t": LONG, "u": [LONG]})
    state.append([add("a", "t"), add("b", "u", "0")])
    with pytest.raises(InvalidUpdate, match=r"Invalid path: \[0\]"):
        state.append([put("x", "t", "0")])
    state.append([put({"v": 1}, "t"), put("w", "t", "v"), put("next", "u", "1")])
    assert state.state == {"t": {"v": "w"}, "u": [LONG + "b", "next"]}
    state.append([put([], "u")])
    assert stringify(state.state) == '{"t":{"v":"w"},"u":[]}'


@pytest.mark.parametrize("text", ["", LONG])
def test_halves_of_a_character_in_two_operations_are_the_character(text: str) -> None:
    state = StateAccumulator(text)
    state.append([add("\ud83c")])
    half = state.state
    state.append([add("\udf0a!")])
    assert half == text + "\ud83c"
    assert state.state == text + "🌊!"
    assert stringify(half) == f'"{text}\\ud83c"'


# ── what they share ──


def test_what_an_operation_does_not_touch_is_shared() -> None:
    made: list[ObjectChunk] = []
    controller = ObjectStreamController(made.append, initial={"a": {"t": LONG}, "b": {"t": LONG}, "c": [{}]})
    for path in ("a", "b", "b", "a"):
        controller.append_text([path, "t"], "more")
    controller.set(["c", "1"], 1)
    one, two, three, four, five = [chunk.snapshot for chunk in made]
    assert one["a"] is two["a"] is three["a"]
    assert two["b"] is not one["b"]
    assert three["b"] is four["b"] is five["b"]
    assert four["a"] is five["a"]
    assert one["c"] is four["c"]
    assert five["c"][0] is one["c"][0]
    assert one["a"] == {"t": LONG + "more"}
    assert five["a"] == {"t": LONG + "moremore"}


def test_reading_twice_gives_the_same_object() -> None:
    made: list[ObjectChunk] = []
    controller = ObjectStreamController(made.append, initial={"a": [LONG]})
    controller.append_text(["a", "0"], "é")
    controller.append_text(["a", "0"], "é")
    assert made[0].snapshot is made[0].snapshot
    assert made[1].snapshot is controller.state
    root = StateAccumulator(LONG)
    root.append([add("é")])
    assert root.state is root.state


# ── what they hold ──


def states(n: int) -> list[Any]:
    state = StateAccumulator({"a": [{"t": ""}]})
    kept = []
    for _ in range(n):
        state.append([add("word " * 40, "a", "0", "t")])
        kept.append(state.tree)
    return kept


def two_texts(n: int) -> list[Any]:
    made: list[Any] = []
    controller = ObjectStreamController(made.append, initial={"a": "", "b": ""})
    for number in range(n):
        controller.append_text(["ab"[number % 2]], "word " * 40)
    return made


def root(n: int) -> list[Any]:
    made: list[Any] = []
    controller = ObjectStreamController(made.append, initial="")
    for _ in range(n):
        controller.append_text([], "word " * 40)
    return made


def decoded(n: int) -> list[Any]:
    frames: list[bytes] = []
    encoder = ObjectStreamEncoder()
    controller = ObjectStreamController(lambda chunk: frames.append(encoder.encode(chunk)), initial={"t": ""})
    for _ in range(n):
        controller.append_text(["t"], "word " * 40)
    return list(ObjectStreamDecoder().feed(b"".join(frames)))


def messages(n: int) -> list[Any]:
    accumulator = AssistantMessageAccumulator(clock=lambda: 0.0, new_id=lambda: "0")
    accumulator.feed(UpdateStateChunk([put("", "t")]))
    made = []
    for number in range(n):
        made.append(accumulator.feed(UpdateStateChunk([add("word " * 40, "t")])))
        if number % 10 == 0:  # another change of the metadata reads no state
            made.append(accumulator.feed(DataChunk([number])))
    return made


def held(make: Callable[[int], list[Any]], n: int) -> int:
    """Bytes that the snapshots hold, all of them kept and none read."""
    tracemalloc.start()
    try:
        kept = make(n)
        size = tracemalloc.get_traced_memory()[0]
        assert len(kept) >= n
        return size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [states, two_texts, root, decoded, messages])
def test_n_appends_hold_n_times_one(make: Callable[[int], list[Any]]) -> None:
    make(10)
    assert held(make, 1200) < 2.6 * held(make, 600)  # copies of the text would make it four times


def test_a_text_read_now_and_then_is_joined_from_where_it_was_read_last() -> None:
    state = StateAccumulator({"t": LONG})
    pieces = []
    for number in range(300):
        state.append([add(f"{number} ", "t")])
        pieces.append(f"{number} ")
        if number % 7 == 0:
            assert state.state == {"t": LONG + "".join(pieces)}
    assert state.tree.growing["t"]._shared.pieces == [LONG, *pieces]  # one list for all of the snapshots


# ── as attributes ──


def test_metadata_and_chunks_are_dataclasses_like_any_other() -> None:
    assert Metadata().unstable_state is None
    assert Metadata({"a": 1}) == Metadata(unstable_state={"a": 1}) != Metadata()
    assert replace(Metadata({"a": 1}), custom={"b": 2}).unstable_state == {"a": 1}
    state = StateAccumulator({"t": LONG})
    state.append([add("a", "t")])
    chunk = ObjectChunk(state.tree, [])
    assert chunk == ObjectChunk({"t": LONG + "a"}, [])
    assert repr(chunk) == f"ObjectChunk(snapshot={{'t': '{LONG}a'}}, operations=[])"
    assert replace(chunk, operations=[1]).to_json() == {"snapshot": {"t": LONG + "a"}, "operations": [1]}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda message: pickle.loads(pickle.dumps(message))])
def test_a_message_whose_state_grew_can_be_copied_and_gone_on_with(copied: Callable[[Message], Message]) -> None:
    accumulator = AssistantMessageAccumulator(clock=lambda: 0.0, new_id=lambda: "0")
    accumulator.feed(UpdateStateChunk([put(LONG, "t")]))
    for _ in range(3000):
        accumulator.feed(UpdateStateChunk([add("a", "t")]))
    initial = copied(accumulator.message)
    assert type(initial.metadata.unstable_state["t"]) is str
    later = AssistantMessageAccumulator(clock=lambda: 0.0, new_id=lambda: "0", initial=initial)
    later.feed(UpdateStateChunk([add("b", "t")]))
    assert later.message.metadata.unstable_state == {"t": LONG + "a" * 3000 + "b"}
    assert accumulator.message.metadata.unstable_state == {"t": LONG + "a" * 3000}
