"""Whose turn it is: the order that all workers agree on, and the times that follow from it."""

from __future__ import annotations

from collections import Counter

from tailrace.contracts import MemberInfo
from tailrace.worker.turns import Turns, rank

HANDLERS = {"echo": {}}


def members(count: int, free: int = 1) -> list[MemberInfo]:
    return [MemberInfo(f"m{number}", HANDLERS, free) for number in range(count)]


def order(command_id: str, everybody: list[MemberInfo]) -> list[int]:
    return [rank(command_id, "echo", one.id, one.free_slots, everybody) for one in everybody]


def test_all_workers_agree_on_one_order() -> None:
    for number in range(200):
        assert sorted(order(f"c{number}", members(5))) == [0, 1, 2, 3, 4]


def test_turns_are_spread_over_the_workers() -> None:
    first = Counter(order(f"c{number}", members(4)).index(0) for number in range(4000))
    assert min(first.values()) > 800


def test_those_with_room_come_first() -> None:
    everybody = [*members(3, free=0), MemberInfo("roomy", HANDLERS, 2)]
    assert all(order(f"c{number}", everybody)[-1] == 0 for number in range(50))


def test_who_does_not_run_the_handler_has_no_turn() -> None:
    everybody = [MemberInfo(f"m{number}", {"other": {}}, 5) for number in range(9)]
    assert rank("c", "echo", "me", 1, everybody) == 0
    assert max(rank(f"c{number}", None, "me", 1, everybody) for number in range(50)) > 0


def test_a_worker_that_is_not_heard_yet_still_has_a_place() -> None:
    assert all(0 <= rank(f"c{number}", "echo", "new", 1, members(3)) <= 3 for number in range(50))


def test_commands_come_when_they_are_due_and_in_their_order() -> None:
    turns = Turns()
    for command_id, at in (("c", 2.0), ("a", 1.0), ("b", 1.0), ("gone", 0.5), ("moved", 0.1)):
        turns.put(command_id, at)
    turns.drop("gone")
    turns.put("moved", 3.0)
    assert turns.wait(0.0) == 1.0
    assert turns.take(0.9) is None
    assert [turns.take(2.5) for _ in range(4)] == ["a", "b", "c", None]
    assert "moved" in turns
    assert turns.take(3.0) == "moved"
    assert turns.wait(3.0) is None
    assert "moved" not in turns


def test_a_turn_that_is_given_twice_is_taken_once() -> None:
    turns = Turns()
    turns.put("a", 1.0)
    turns.put("a", 1.0)
    assert [turns.take(1.0), turns.take(1.0)] == ["a", None]
