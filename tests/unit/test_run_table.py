"""The table of commands that are not done: what counts, whatever came twice, and whatever compaction removed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from tailrace.command_wire import encode_command
from tailrace.contracts import Command
from tailrace.kafka.run_table import Message, Queued, RunTable


def submitted(command_id: str, stream: str = "s", handler: str = "h") -> Message:
    headers, payload = encode_command(Command(stream, handler, b"1", "bytes", "d", id=command_id))
    return Message(command_id.encode(), payload, 1, headers)


def taken(command_id: str, member: str) -> Message:
    return Message(f"{command_id}/{member}".encode(), b"taken", 1, {})


def gone(key: str) -> Message:
    return Message(key.encode(), None, 1, {})


def table(messages: Iterable[Message]) -> RunTable:
    made = RunTable()
    for message in messages:
        made.take(0, message)
    return made


def content(made: RunTable) -> dict[str, frozenset[str]]:
    return {queued.id: frozenset(queued.takers) for queued in made}


def test_the_first_one_counts_and_the_submitter_of_the_second_is_told() -> None:
    made, told = RunTable(), []
    made.expect("b", told.append)
    for message in (submitted("a"), submitted("b"), submitted("b")):
        made.take(0, message)
    assert [queued.id for queued in told] == ["a", "a"]
    assert list(content(made)) == ["a"]
    made.forget("b")
    made.take(0, submitted("b"))
    assert len(told) == 2
    assert [queued.behind for queued in made] == [{"b"}]


def test_a_command_that_is_done_makes_room_for_the_next() -> None:
    made = table([submitted("a"), taken("a", "m"), gone("a"), submitted("b")])
    assert content(made) == {"b": frozenset()}
    assert made.takers() == ()
    found = made.of_stream("s")
    assert found is not None
    assert found.id == "b"


def test_takers_are_known_from_both_sides() -> None:
    made = table([submitted("a"), submitted("b", "t"), taken("a", "m"), taken("b", "m"), taken("a", "n")])
    assert sorted(queued.id for queued in made.taken_by("m")) == ["a", "b"]
    made.take(0, gone("a/m"))
    assert [queued.id for queued in made.taken_by("m")] == ["b"]
    made.take(0, gone("a/m"))
    made.take(0, gone("never/m"))
    assert content(made) == {"a": frozenset({"n"}), "b": frozenset({"m"})}


def test_each_change_is_told_once() -> None:
    made, changed = RunTable(), []
    made.on_change = lambda queued: changed.append((queued.id, sorted(queued.takers), queued.id in made))
    for message in (
        submitted("a"),
        submitted("x"),
        taken("a", "m"),
        taken("z", "m"),
        gone("a/m"),
        gone("a"),
        gone("a"),
    ):
        made.take(0, message)
    assert changed == [("a", [], True), ("a", ["m"], True), ("a", [], True), ("a", [], False)]


def test_what_cannot_be_read_is_kept_for_a_worker_to_bury() -> None:
    headers, payload = encode_command(Command("s", "h", b"1", "bytes", "d", id="a"))
    broken = Message(b"a", payload, 7, headers | {"Tailrace-Meta": "{"})
    made = table([broken, Message(b"\xff", b"", 1, {})])
    first = made.get("a")
    assert first is not None
    assert (first.command, first.stream_id, first.submitted_ms) == (None, "s", 7)
    assert first.unread is not None
    assert made.of_stream("s") is None
    assert len(content(made)) == 2


def test_a_command_under_anothers_key_does_not_count() -> None:
    message = submitted("a")
    assert content(table([message._replace(key=b"b")])) == {}


def test_a_partition_is_forgotten_alone() -> None:
    made, changed = RunTable(), list[Queued]()
    made.take(0, submitted("a"))
    made.take(1, submitted("b", "t"))
    made.take(0, taken("a", "m"))
    made.on_change = changed.append
    made.clear(0)
    assert content(made) == {"b": frozenset()}
    assert made.takers() == ()
    assert [queued.id for queued in changed] == ["a"]


@given(st.data())
def test_compaction_changes_nothing(data: st.DataObject) -> None:
    """A process that reads what compaction left knows what one knows that saw it all."""
    log: list[Message] = []
    open_ids: dict[str, tuple[str, set[str]]] = {}  # by stream: the command that counts, its takers
    numbers = count()
    for _ in range(data.draw(st.integers(0, 40))):
        stream, member = data.draw(st.sampled_from("xyz")), data.draw(st.sampled_from(["m", "n"]))
        what = data.draw(st.sampled_from(["submit", "submit", "again", "take", "let go", "done"]))
        if what == "submit":
            command_id = f"c{next(numbers)}"
            log.append(submitted(command_id, stream))
            if stream in open_ids:
                log.append(gone(command_id))  # it came second, and its submitter removes it
            else:
                open_ids[stream] = (command_id, set())
        elif stream in open_ids:
            command_id, takers = open_ids[stream]
            if what == "take":
                log.append(taken(command_id, member))
                takers.add(member)
            elif what == "let go":
                log.append(gone(f"{command_id}/{member}"))
                takers.discard(member)
            elif what == "done":
                log += [gone(command_id), *(gone(f"{command_id}/{taker}") for taker in sorted(takers))]
                del open_ids[stream]
            elif not takers:  # a submit whose answer was lost: before anybody had it
                log.append(submitted(command_id, stream))
    expected = {command_id: frozenset(takers) for command_id, takers in open_ids.values()}
    assert content(table(log)) == expected
    last = {message.key: number for number, message in enumerate(log)}
    cut = data.draw(st.integers(0, len(log)))  # what comes behind is not compacted yet
    left = [m for n, m in enumerate(log) if n >= cut or n == max(k for k in range(cut) if log[k].key == m.key)]
    assert content(table(left)) == expected
    clean = [m for n, m in enumerate(log) if n == last[m.key] and m.value is not None]  # nor are tombstones left
    assert content(table(clean)) == expected
