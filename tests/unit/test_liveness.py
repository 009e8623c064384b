"""Who is lost: never one that beats whenever the broker is there, always one that is silent for its time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from tailrace.liveness import Liveness

TTL, INTERVAL = 1000, 200
GAP = 3 * INTERVAL
END = 20_000

Windows = list[tuple[int, int]]  # start and end in ms, apart from one another

WINDOWS = st.lists(st.integers(0, END), max_size=12, unique=True).map(
    lambda edges: list(zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
)


def make() -> Liveness:
    return Liveness("me", TTL, GAP)


def within(windows: Windows, time: int) -> tuple[int, int] | None:
    return next((window for window in windows if window[0] <= time < window[1]), None)


def beats(first: int, asleep: Windows, away: Windows, *, stored_late: bool) -> Iterator[int]:
    """The broker times of one member's beats: one an interval while it is awake. One that meets an absent broker is
    stored when that is back (the server was paused), or skipped (the connection was gone)."""
    time = first
    while time < END:
        if (window := within(asleep, time)) is not None:
            time = window[1]
            continue
        if (window := within(away, time)) is not None:
            if stored_late:
                time = window[1]
                yield time
        else:
            yield time
        time += INTERVAL


def observe(live: Liveness, own: list[int], other: list[int], restarts: list[int]) -> Iterator[int]:
    """Deliver everything in the broker's order; yield at each own beat. At equal times the own beat comes first: the
    observer gets the least."""
    for time, kind in heapq.merge([(at, 0) for at in restarts], [(at, 1) for at in own], [(at, 2) for at in other]):
        if kind == 0:
            live.restart()
        elif kind == 1:
            live.heard("me", time)
            yield time
        else:
            live.heard("it", time)


@given(WINDOWS, WINDOWS, st.integers(0, INTERVAL), st.integers(0, INTERVAL))
@example([(300, 15_000)], [], 0, 199)
@example([(300, 1000), (1150, 1400)], [(2000, 9000)], 0, 199)
def test_a_broker_that_was_away_and_an_observer_that_slept_end_nobody(
    away: Windows, asleep: Windows, first: int, others_first: int
) -> None:
    live = make()
    own = list(beats(first, asleep, away, stored_late=False))
    other = list(beats(others_first, [], away, stored_late=False))
    back = [end for _, end in away]
    restarts = [next((wake for sleep, wake in asleep if sleep <= end < wake), end) for end in back]
    for _ in observe(live, own, other, sorted(restarts)):
        assert not live.is_lost("it")


@given(WINDOWS, WINDOWS, st.integers(0, INTERVAL), st.integers(0, INTERVAL))
@example([(500, 9000)], [], 0, 199)
def test_a_broker_that_paused_without_breaking_a_connection_ends_nobody(
    paused: Windows, asleep: Windows, first: int, others_first: int
) -> None:
    live = make()
    own = list(beats(first, asleep, paused, stored_late=True))
    other = list(beats(others_first, [], paused, stored_late=True))
    for _ in observe(live, own, other, []):
        assert not live.is_lost("it")


@given(st.integers(0, INTERVAL), st.integers(0, INTERVAL), st.integers(0, 9000))
def test_a_silent_member_is_lost_after_its_time_and_not_before(first: int, others_first: int, dies: int) -> None:
    live = make()
    other = [at for at in beats(others_first, [], [], stored_late=False) if at <= dies]
    last = max(other, default=None)
    asked = None
    for now in observe(live, list(beats(first, [], [], stored_late=False)), other, []):
        lost = live.is_lost("it")
        asked = now if asked is None else asked
        silent_from = max(first, asked if last is None else last)
        assert lost == (now >= silent_from and now - silent_from > TTL)


@given(WINDOWS, st.integers(0, INTERVAL))
def test_silence_counts_only_while_own_beats_return(asleep: Windows, first: int) -> None:
    """However the observer sleeps: whoever it holds lost was silent for the time in one stretch of hearing."""
    live = make()
    own = list(beats(first, asleep, [], stored_late=False))
    since = own[0] if own else 0
    gaps = {after for before, after in pairwise(own) if after - before > GAP}
    for now in observe(live, own, [0], []):
        since = now if now in gaps else since
        assert live.is_lost("it") == (now - since > TTL)


def test_one_that_was_silent_for_long_and_beats_again_lives() -> None:
    live = make()
    live.heard("it", 0)
    for now in range(0, 100 * TTL, INTERVAL):
        live.heard("me", now)
    live.heard("it", 100 * TTL)
    live.heard("me", 100 * TTL)
    assert not live.is_lost("it")
    assert set(live.alive()) == {"it", "me"}


def test_one_that_is_lost_for_long_is_forgotten_and_lost_again() -> None:
    live = make()
    live.heard("it", 0)
    states = []
    for now in range(0, 60 * TTL, INTERVAL):
        live.heard("me", now)
        states.append(live.is_lost("it"))
    assert states[-1] or any(states[-2 * TTL // INTERVAL :])
    assert len(live._heard) <= 2


def test_whoever_said_goodbye_long_ago_is_forgotten_too() -> None:
    live = make()
    for now in range(0, 60 * TTL, INTERVAL):
        live.heard(f"visitor {now}", now, goodbye=True)
        live.heard("me", now)
        assert live.is_lost(f"visitor {now}")
    assert len(live._gone) <= 21 * TTL // INTERVAL


def test_a_goodbye_is_final() -> None:
    live = make()
    live.heard("it", 0)
    live.heard("me", 10)
    live.heard("it", 20, goodbye=True)
    assert live.is_lost("it")
    live.heard("it", 15)  # an older beat, late
    live.withdraw("it", 30)
    live.heard("me", 40)
    assert live.is_lost("it")
    assert live.alive() == ["me"]


def test_another_sign_of_life_starts_the_silence_again() -> None:
    live = make()
    live.heard("it", 0)
    for now in range(0, 1400, INTERVAL):
        live.heard("me", now)
    assert live.is_lost("it")
    live.withdraw("it", 1200)
    assert not live.is_lost("it")
    for now in range(1400, 2600, INTERVAL):
        live.heard("me", now)
    assert live.is_lost("it")


def test_itself_is_never_lost_and_nobody_before_it_hears() -> None:
    live = make()
    assert not live.is_lost("me")
    assert not live.is_lost("it")
    live.heard("it", 0)
    assert not live.settled
    live.heard("me", 0)
    live.heard("me", 200)
    assert live.settled
    live.restart()
    assert not live.settled
    assert not live.is_lost("it")
