"""The client's core by itself: patience, pauses, positions, and bytes that are neither repeated nor skipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.client import AnswerTaken, Patience, Position, Unreachable
from tailrace.client.exchange import Ask, Call, Head, Means, Pause
from tailrace.client.following import STEADY, Following
from tailrace.client.outgoing import Setup
from tailrace.errors import ClaimTimeout, InvalidCursor, NoWorkers, StreamErrored, StreamNotFound, TailraceError
from tailrace.model import Incarnation, Mark

LIFE = "1-00000000000000aa"
OPEN = Head(200, "OK", {"tailrace-incarnation": LIFE, "transfer-encoding": "chunked"})


class World:
    """A clock that only pauses move, and the largest pause that there may be."""

    def __init__(self) -> None:
        self.now = 0.0
        self.bounds: list[float] = []
        self.means = Means(lambda: self.now, self.between)

    def between(self, low: float, high: float) -> float:
        assert low == 0
        self.bounds.append(high)
        return high

    def next(self, exchange: Any) -> Ask | None:
        """The next request, all pauses slept."""
        while isinstance(step := exchange.step(), Pause):
            self.now += step.seconds
        return step


def refusal(status: int, code: str, **headers: str) -> tuple[Head, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Head(status, "", named), json.dumps({"code": code, "detail": "so it is"}).encode()


def status(state: str, size: int, **more: Any) -> tuple[Head, bytes]:
    told = {"id": "a", "status": state, "bytes": size, "incarnation": LIFE} | more
    return Head(200, "OK", {}), json.dumps(told).encode()


def follow(world: World, patience: Patience | None = None, **more: Any) -> Following:
    return Following(more.pop("position", Position("a")), patience or Patience(), means=world.means, **more)


def test_pauses_are_random_below_a_bound_that_doubles_until_patience_is_over() -> None:
    world = World()
    following = follow(world, Patience(start=6, first_pause=0.5, longest_pause=2))
    for _ in range(5):
        assert world.next(following) is not None
        following.broke("no route")
    assert world.next(following) is not None
    with pytest.raises(Unreachable, match="no route"):
        following.broke("no route")
    assert world.bounds == [0.5, 1, 2, 2, 2]
    assert world.now == 6  # the last pause is cut: there is one attempt where patience ends


def test_retry_after_is_kept_and_one_beyond_patience_is_not_waited_for() -> None:
    world = World()
    following = follow(world, Patience(start=10, first_pause=0.5))
    following.told(*refusal(429, "slow-down", retry_after="4"))
    world.next(following)
    assert world.now == 4.5
    with pytest.raises(NoWorkers):
        following.told(*refusal(503, "no-workers", retry_after="60"))
    assert world.now == 4.5


def test_a_run_that_stays_queued_is_read_with_the_longer_patience() -> None:
    world = World()
    following = follow(world, Patience(start=5, resume=100), start=b"{}")
    assert world.next(following) == Ask("POST", "/v1/runs", content=b"{}")
    world.now += 30
    following.told(*refusal(504, "claim-timeout"))
    for _ in range(3):
        assert world.next(following) == Ask("GET", "/v1/runs/a", {})
        world.now += 30
        following.told(*refusal(504, "claim-timeout"))
    world.next(following)
    world.now += 30
    with pytest.raises(ClaimTimeout):
        following.told(*refusal(504, "claim-timeout"))


@pytest.mark.parametrize(("open_for", "goes_on"), [(0.0, False), (STEADY, True)])
def test_a_gateway_that_opens_and_breaks_is_not_waited_for_endlessly(open_for: float, goes_on: bool) -> None:
    world = World()
    following = follow(world, Patience(start=5, resume=20, longest_pause=1))
    try:
        for _ in range(100):
            assert world.next(following) is not None
            assert following.answered(OPEN)
            world.now += open_for
            following.broke("reset")
            assert world.next(following) == Ask("GET", "/v1/runs/a/status")
            assert not following.answered(Head(200, "OK", {}))
            following.told(*status("streaming", 0))
        gave_up = False
    except Unreachable:
        gave_up = True
    assert gave_up is not goes_on


def test_an_end_that_could_be_a_break_is_asked_about() -> None:
    world = World()
    following = follow(world)
    turn = following.begin()
    world.next(following)
    assert following.answered(Head(200, "OK", {"tailrace-incarnation": LIFE}))  # neither a length nor chunks
    following.received(turn, b"abc")
    following.ended(turn)
    assert world.next(following) == Ask("GET", "/v1/runs/a/status")
    following.told(*status("done", 3))
    assert world.next(following) is None


def test_a_newer_iteration_takes_over() -> None:
    following = follow(World())
    old, new = following.begin(), following.begin()
    following.answered(OPEN)
    following.received(new, b"a")
    with pytest.raises(AnswerTaken):
        following.received(old, b"b")
    with pytest.raises(AnswerTaken):
        following.ended(old)
    assert following.position == ("a", 1, LIFE)


def test_a_cursor_is_a_position_until_bytes_come() -> None:
    cursor = Mark(Incarnation.parse(LIFE), 3, 4, 50).cursor("a")
    world = World()
    following = follow(world, cursor=cursor)
    assert following.position == Position("a", 50, LIFE)
    assert world.next(following) == Ask("GET", "/v1/runs/a", {"cursor": cursor})
    following.answered(OPEN)
    following.received(following.begin(), b"xy")
    following.broke("reset")
    world.next(following)
    following.told(*status("streaming", 52))
    assert world.next(following) == Ask("GET", "/v1/runs/a", {"offset": "52", "incarnation": LIFE})


@pytest.mark.parametrize(
    "arguments",
    [
        ("a", "cursor", 1, None),
        ("a", "", -1, None),
        ("a", "", 1, "not one"),
        ("a", "not one", 0, None),
        (Position("a", 1, LIFE), "cursor", 0, None),
    ],
)
def test_a_position_that_is_none_is_refused(arguments: Any) -> None:
    setup = Setup("http://127.0.0.1:1", None, None, 1, Patience(), lambda event: None)
    with pytest.raises(InvalidCursor):
        setup.resumed(*arguments)


def test_a_position_survives_json() -> None:
    position = Position("a", 7, LIFE)
    assert Position(*json.loads(json.dumps(position))) == position


def test_a_delete_whose_answer_was_lost_is_repeated() -> None:
    missing = Head(404, "", {}), b'{"error":"stream not found"}'
    world = World()
    delete = Call(Ask("DELETE", "/v1/runs/a"), Patience(), ends_missing=True, means=world.means)
    world.next(delete)
    delete.broke("reset")
    assert world.next(delete) == Ask("DELETE", "/v1/runs/a")
    delete.told(*missing)
    assert world.next(delete) is None
    for first in (Call(Ask("DELETE", "/"), Patience(), ends_missing=True), Call(Ask("GET", "/"), Patience())):
        with pytest.raises(StreamNotFound):
            first.told(*missing)


class Service:
    """A stream of ``data`` at gateways that fail as ``draw`` says, each request by itself; ``ending`` is its last."""

    def __init__(self, data: bytes, ending: str, draw: Callable[[int], int]) -> None:
        self.data, self.ending, self._draw = data, ending, draw
        self.written = 0
        self.starts: set[bytes] = set()

    def grow(self) -> None:
        self.written = min(len(self.data), self.written + self._draw(5))

    @property
    def over(self) -> bool:
        return self.written == len(self.data)

    def body(self, offset: int, take: Callable[[bytes], None]) -> bool:
        """Hand out parts from ``offset`` on; whether the body ends cleanly."""
        while True:
            self.grow()
            end = offset + self._draw(self.written - offset)
            if end > offset:
                take(self.data[offset:end])
                offset = end
            if offset == len(self.data):
                return self.ending == "done" and self._draw(3) > 0
            if self._draw(3) == 0:
                return False

    def state(self) -> tuple[Head, bytes]:
        self.grow()
        return status(self.ending if self.over else "streaming", self.written)


def drive(service: Service, following: Following, draw: Callable[[int], int], got: bytearray) -> None:
    """What a driver does, without a network."""
    while (step := following.step()) is not None:
        if isinstance(step, Pause):
            continue
        fault = draw(6)
        if step.content is not None:
            service.starts.add(step.content)
        if fault == 0:
            following.broke("no connection")
        elif fault == 1:
            following.told(*refusal(503, "draining"))
        elif step.path.endswith("/status"):
            assert not following.answered(Head(200, "OK", {}))
            following.told(*service.state())
        else:
            offset = int(step.params.get("offset", 0))
            assert offset == len(got)
            assert following.answered(OPEN)
            turn = following.begin()

            def take(part: bytes, turn: int = turn) -> None:
                following.received(turn, part)
                got.extend(part)

            if service.body(offset, take):
                following.ended(turn)
            else:
                following.broke("cut")


@given(st.binary(max_size=60), st.sampled_from(["done", "error"]), st.booleans(), st.integers(0, 2**32))
def test_whatever_breaks_the_bytes_are_the_stream_and_its_ending_is_told(
    data: bytes, ending: str, starts: bool, seed: int
) -> None:
    random = Random(seed)

    def draw(most: int) -> int:
        return random.randint(0, most)

    service = Service(data, ending, draw)
    following = Following(Position("a"), Patience(start=1e9, resume=1e9), start=b"{}" if starts else None)
    got = bytearray()
    raised: TailraceError | None = None
    try:
        drive(service, following, draw, got)
    except TailraceError as error:
        raised = error
    assert bytes(got) == data
    assert following.position.offset == len(data)
    assert (type(raised) if raised else None) is (StreamErrored if ending == "error" else None)
    assert service.starts <= {b"{}"}
