"""The fold: its table is whole, and no sequence of records breaks its rules."""

from __future__ import annotations

from itertools import count, pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tailrace import decide
from tailrace.fold import DELETED, EXPIRED, TRANSITIONS, TRIMMED, EpochStart, Phase, State, Verdict, fold
from tailrace.model import Claim, Ending, Incarnation, Mark, ProducerSeq, Status
from tailrace.records import Kind, Record, Stored

DONE = Ending(Status.DONE)
LIVES = [Incarnation(1, 1), Incarnation(1, 2), Incarnation(2, 1), Incarnation(3, 1)]
CHUNKS = st.lists(st.binary(max_size=3), min_size=1, max_size=3).map(tuple)
SILENT = set(Verdict) - {Verdict.COUNTS, Verdict.HOLE}


def claim_of(owner: str = "m", *, shared: bool = False) -> Claim:
    return Claim(owner, 60.0, 600.0, shared=shared)


def without_position(state: State) -> State:
    return state._replace(position=0)


def test_the_table_is_whole() -> None:
    assert set(TRANSITIONS) == set(product(Phase, Kind))


def check_step(before: State, stored: Stored, after: State, verdict: Verdict) -> None:
    """What holds for every record after every other."""
    record = stored.record
    assert after.position == stored.position
    if verdict in SILENT:
        assert without_position(after) == without_position(before)
        return
    assert after.last_nonce == (record.nonce if verdict is Verdict.COUNTS else before.last_nonce)
    if verdict is Verdict.HOLE:
        assert after.ending == TRIMMED
        assert after.phase in (Phase.ENDED, Phase.HEADLESS)
        return
    assert after.incarnation == record.incarnation
    if before.phase is Phase.GONE:
        assert record.kind is Kind.CLAIM
        assert after.generation == before.generation + 1
    if before.incarnation == after.incarnation and before.phase is not Phase.HEADLESS:
        _check_one_life(before, record, after)
    fresh = Phase.ENDED if record.ending else Phase.LIVE
    expected = {
        Kind.CLAIM: (fresh, record.ending),
        Kind.CHUNKS: (Phase.LIVE, None),
        Kind.TAKEOVER: (fresh, record.ending),
        Kind.FINISH: (Phase.ENDED, record.ending),
        Kind.EXPIRY: (Phase.GONE, EXPIRED),
        Kind.TOMBSTONE: (Phase.GONE, DELETED),
    }
    assert (after.phase, after.ending) == expected[record.kind]


def _check_one_life(before: State, record: Record, after: State) -> None:
    added = (len(record.chunks), sum(map(len, record.chunks)))
    assert (after.entries - before.entries, after.bytes - before.bytes) == added
    assert before.phase in (Phase.LIVE, Phase.ENDED)
    if before.phase is Phase.ENDED:
        assert record.kind in (Kind.EXPIRY, Kind.TOMBSTONE)
    assert record.kind is not Kind.CLAIM, "a second producer"
    if record.kind is Kind.TAKEOVER:
        assert after.epoch == before.epoch + 1
        assert after.epochs == (*before.epochs, EpochStart(after.epoch, before.entries, before.bytes))
    else:
        assert after.epoch == before.epoch
    if after.phase is not Phase.GONE:
        assert after.claim == before.claim
        assert after.owner == before.owner or record.kind is Kind.TAKEOVER
        assert after.created_ms == before.created_ms


# Anything after anything

POSITIONS = st.integers(0, 4)
ANY_RECORD = st.builds(
    Record,
    st.sampled_from(list(Kind)),
    st.just("a"),
    st.sampled_from(LIVES),
    st.integers(1, 3),
    POSITIONS,
    POSITIONS,
    st.sampled_from([f"n{i}" for i in range(8)]),
    chunks=CHUNKS,
    claim=st.builds(claim_of, st.sampled_from("mn"), shared=st.booleans()),
    ending=st.sampled_from([DONE, Ending(Status.ERROR, None, "boom"), None]),
    producer=st.none() | st.builds(ProducerSeq, st.just("p"), st.integers(0, 2), st.integers(0, 3)),
)


def _legal(record: Record) -> Record:
    """``record`` with what its kind carries and nothing else, as `records.decode` gives it."""
    kind = record.kind
    ending = record.ending
    if kind is Kind.FINISH:
        ending = ending or DONE
    elif kind in (Kind.CHUNKS, Kind.TOMBSTONE):
        ending = None
    return record._replace(
        chunks=record.chunks if kind is Kind.CHUNKS else (),
        claim=record.claim if kind in (Kind.CLAIM, Kind.TAKEOVER) else None,
        ending=ending,
        producer=record.producer if kind is Kind.CHUNKS else None,
    )


@given(st.lists(ANY_RECORD.map(_legal), max_size=30))
def test_no_record_after_any_other_breaks_a_rule(records: list[Record]) -> None:
    state = State()
    for position, record in enumerate(records, 1):
        stored = Stored(position, position - 1, position * 10, record)
        after, verdict = fold(state, stored)
        check_step(state, stored, after, verdict)
        state = after


@pytest.mark.parametrize(
    ("start", "ending", "verdict"),
    [
        ((1, 1), decide.LOST, Verdict.COUNTS),
        ((0, 0), decide.LOST, Verdict.COUNTS),  # its writer saw less: the epoch begins at the stream's end
        ((2, 1), TRIMMED, Verdict.HOLE),
        ((1, 9), TRIMMED, Verdict.HOLE),
    ],
)
def test_a_takeover_that_starts_beyond_the_end_shows_a_hole(
    start: tuple[int, int], ending: Ending, verdict: Verdict
) -> None:
    life, state = LIVES[0], State()
    records = [
        Record(Kind.CLAIM, "a", life, 1, 0, 0, "n1", claim=claim_of()),
        Record(Kind.CHUNKS, "a", life, 1, 0, 0, "n2", (b"x",)),
        Record(Kind.TAKEOVER, "a", life, 2, *start, "n3", ending=decide.LOST),
    ]
    for position, record in enumerate(records, 1):
        state, judged = fold(state, Stored(position, position - 1, position, record))
    assert (state.phase, state.ending, judged) == (Phase.ENDED, ending, verdict)


@given(st.lists(ANY_RECORD.map(_legal), max_size=30))
def test_a_repeat_changes_nothing(records: list[Record]) -> None:
    state, position = State(), 0
    for record in records:
        position += 1
        state, verdict = fold(state, Stored(position, -1, position, record))
        if verdict is not Verdict.COUNTS:
            continue
        position += 1
        again, verdict = fold(state, Stored(position, -1, position * 1000, record))
        assert verdict is Verdict.REPEAT
        assert without_position(again) == without_position(state)


@given(st.lists(ANY_RECORD.map(_legal), max_size=30), ANY_RECORD.map(_legal))
def test_what_belongs_to_another_life_changes_nothing(records: list[Record], late: Record) -> None:
    state = State()
    for position, record in enumerate(records, 1):
        state, _ = fold(state, Stored(position, -1, position, record))
    if state.phase not in (Phase.LIVE, Phase.ENDED) or late.incarnation == state.incarnation:
        return
    after, verdict = fold(state, Stored(99, -1, 99, late))
    assert verdict in (Verdict.FENCED, Verdict.TAKEN)
    assert without_position(after) == without_position(state)


def test_an_expiry_that_did_not_see_the_ending_does_not_count() -> None:
    """The ending has begun the time to live anew."""
    record = decide.claim(State(), "a", 1, claim_of())
    assert record is not None
    state, _ = fold(State(), Stored(1, 0, 0, record))
    expiry = decide.expiry(state, "a", "e", 60_000)
    assert expiry is not None
    assert state.mark is not None
    ended, _ = fold(state, Stored(2, 1, 59_999, decide.finish(state.mark, "a", "f", DONE)))
    after, verdict = fold(ended, Stored(3, 2, 60_001, expiry))
    assert verdict is Verdict.OVERTAKEN
    assert after.phase is Phase.ENDED
    assert decide.due_ms(after) == 59_999 + 60_000


# What is decided on the newest state counts

INTENTS = st.sampled_from(
    ["claim", "claim-ended", "chunks", "finish", "takeover", "end", "expiry", "too-old", "delete"]
)


def _decide(intent: str, state: State, number: int) -> Record | None:
    nonce, mark = f"n{number}", state.mark
    live = state.phase is Phase.LIVE and mark is not None
    match intent:
        case "claim":
            return decide.claim(state, "a", number, claim_of())
        case "claim-ended":
            return decide.claim(state, "a", number, claim_of(), Ending(Status.CANCELLED))
        case "chunks":
            return decide.chunks(mark, "a", nonce, (b"x", b"", b"yz")) if live and mark else None
        case "finish":
            return decide.finish(mark, "a", nonce, DONE) if live and mark else None
        case "takeover":
            return decide.takeover(state, "a", nonce, mark, None, claim_of(f"m{number}"))
        case "end":
            return decide.takeover(state, "a", nonce, None, decide.LOST)
        case "expiry":
            return decide.expiry(state, "a", nonce, state.updated_ms + 60_000)
        case "too-old":
            return decide.expiry(state, "a", nonce, state.created_ms + 600_000)
        case _:
            return decide.tombstone(state, "a", nonce)


@given(st.lists(INTENTS, max_size=40))
def test_what_is_decided_on_the_newest_state_counts(intents: list[str]) -> None:
    state, accepted = State(), b""
    for number, intent in enumerate(intents, 1):
        record = _decide(intent, state, number)
        if record is None:
            continue
        stored = Stored(number, -1, number, record)
        after, verdict = fold(state, stored)
        check_step(state, stored, after, verdict)
        assert verdict is Verdict.COUNTS, (intent, verdict)
        accepted = b"" if record.kind is Kind.CLAIM else accepted + b"".join(record.chunks)
        assert after.bytes == len(accepted)
        assert [start.epoch for start in after.epochs] == list(range(1, len(after.epochs) + 1))
        assert all(before.entries <= behind.entries for before, behind in pairwise(after.epochs))
        state = after


# A log that stores what does not count: writers act on what they saw, however old, and the fold sorts it out


class StaleWriters(RuleBasedStateMachine):
    """Everybody decides on a state that he saw some time ago, a producer on its own mark. Nothing is refused."""

    @initialize()
    def begin(self) -> None:
        self.state = State()
        self.seen = [self.state]
        self.marks: list[Mark] = []  # each lease ever won, with where its writer believes to be
        self.last: dict[int, Record] = {}  # a lease's newest record: what it may send again
        self.others: list[tuple[Record, State]] = []  # what anybody may send again, with what its writer had seen
        self.numbers = count(1)
        self.accepted: list[tuple[Incarnation, int]] = []

    def store(self, record: Record, saw: State | None = None) -> Verdict:
        number = next(self.numbers)
        stored = Stored(number, number - 1, number, record)
        after, verdict = fold(self.state, stored)
        check_step(self.state, stored, after, verdict)
        assert verdict is not Verdict.HOLE
        if verdict is Verdict.COUNTS and record.kind is Kind.EXPIRY:
            assert saw is not None
            assert _facts(saw) == _facts(self.state), "an expiry counted although its writer had not seen all"
        if verdict is Verdict.COUNTS and record.kind in (Kind.CHUNKS, Kind.FINISH):
            assert (record.incarnation, record.epoch) == self.accepted[-1], "a fenced producer's record counted"
        if verdict is Verdict.COUNTS and record.kind in (Kind.CLAIM, Kind.TAKEOVER):
            self.accepted.append((record.incarnation, record.epoch))
            assert len(set(self.accepted)) == len(self.accepted), "two producers of one epoch"
        self.state = after
        self.seen = [*self.seen[-5:], after]
        return verdict

    @rule(data=st.data(), intent=INTENTS)
    def act_on_what_was_seen(self, data: st.DataObject, intent: str) -> None:
        saw = data.draw(st.sampled_from(self.seen))
        if intent in ("chunks", "finish"):
            return
        record = _decide(intent, saw, next(self.numbers))
        if record is None:
            return
        self.others.append((record, saw))
        if self.store(record, saw) is Verdict.COUNTS and self.state.phase is Phase.LIVE:
            assert self.state.mark is not None
            self.marks.append(self.state.mark)

    @precondition(lambda self: self.marks)
    @rule(data=st.data(), chunks=CHUNKS)
    def produce(self, data: st.DataObject, chunks: tuple[bytes, ...]) -> None:
        lease = data.draw(st.integers(0, len(self.marks) - 1))
        if lease in self.last and self.last[lease].kind is Kind.FINISH:
            return
        record = decide.chunks(self.marks[lease], "a", f"n{next(self.numbers)}", chunks)
        self.marks[lease] = self.marks[lease]._replace(entries=record.end_entries, bytes=record.end_bytes)
        self.last[lease] = record
        self.store(record)

    @precondition(lambda self: self.marks)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        lease = data.draw(st.integers(0, len(self.marks) - 1))
        self.last[lease] = decide.finish(self.marks[lease], "a", f"n{next(self.numbers)}", DONE)
        self.store(self.last[lease])

    @precondition(lambda self: self.last)
    @rule(data=st.data())
    def a_producer_sends_again(self, data: st.DataObject) -> None:
        verdict = self.store(self.last[data.draw(st.sampled_from(sorted(self.last)))])
        assert verdict is not Verdict.COUNTS

    @precondition(lambda self: self.others)
    @rule(data=st.data())
    def somebody_sends_again(self, data: st.DataObject) -> None:
        self.store(*data.draw(st.sampled_from(self.others)))


def _facts(state: State) -> tuple[object, ...]:
    return state.incarnation, state.epoch, state.entries, state.ending


TestStaleWriters = StaleWriters.TestCase


# Idempotent appends of many writers


@given(st.lists(st.tuples(st.sampled_from("pq"), st.integers(0, 2), st.integers(0, 3)), max_size=40))
def test_an_idempotent_append_counts_once_and_in_sequence(appends: list[tuple[str, int, int]]) -> None:
    life = Incarnation(1, 1)
    claim = Record(Kind.CLAIM, "a", life, 1, 0, 0, "claim", claim=claim_of(shared=True))
    state, _ = fold(State(), Stored(1, 0, 1, claim))
    known: dict[str, tuple[int, int]] = {}
    for position, (name, epoch, seq) in enumerate(appends, 2):
        held, last = known.get(name, (-1, -1))
        expected = Verdict.COUNTS
        if epoch < held:
            expected = Verdict.STALE
        elif epoch == held and seq <= last:
            expected = Verdict.DUPLICATE
        elif seq != (last + 1 if epoch == held else 0):
            expected = Verdict.OUT_OF_SEQUENCE
        producer = ProducerSeq(name, epoch, seq)
        record = Record(Kind.CHUNKS, "a", life, 1, 0, 0, f"n{position}", (b"x",), producer=producer)
        before = state
        state, verdict = fold(state, Stored(position, -1, position, record))
        assert verdict is expected
        if verdict is Verdict.COUNTS:
            known[name] = (epoch, seq)
            assert state.entries == before.entries + 1
        else:
            assert without_position(state) == without_position(before)
    assert dict(state.producers) == known


# The log lost something


@pytest.mark.parametrize("kind", [Kind.CHUNKS, Kind.FINISH])
@pytest.mark.parametrize(("entries", "octets"), [(1, 0), (0, 1), (5, 50)])
def test_a_record_that_starts_elsewhere_ends_the_stream_as_trimmed(kind: Kind, entries: int, octets: int) -> None:
    record = decide.claim(State(), "a", 1, claim_of())
    assert record is not None
    state, _ = fold(State(), Stored(1, 0, 1, record))
    gap = Record(kind, "a", record.incarnation, 1, entries, octets, "n", (b"x",), ending=DONE)
    after, verdict = fold(state, Stored(2, 1, 2, gap))
    assert (verdict, after.phase, after.ending) == (Verdict.HOLE, Phase.ENDED, TRIMMED)
    assert state.mark is not None
    later, verdict = fold(after, Stored(3, 2, 3, decide.chunks(state.mark, "a", "m", (b"y",))))
    assert verdict is Verdict.FINALIZED
    assert later.bytes == 0


def test_a_log_without_its_claim_is_trimmed_and_never_free() -> None:
    life = Incarnation(4, 9)
    state, verdict = fold(State(), Stored(7, 6, 1, decide.chunks(Mark(life, 2, 10, 100), "a", "n", (b"xyz",))))
    assert (verdict, state.phase) == (Verdict.HOLE, Phase.HEADLESS)
    assert (decide.info(state, "a").status, state.entries, state.bytes) == (Status.TRIMMED, 11, 103)
    assert decide.claim(state, "a", 1, claim_of()) is None
    tombstone = decide.tombstone(state, "a", "t")
    assert tombstone is not None
    state, _ = fold(state, Stored(8, 7, 2, tombstone))
    claim = decide.claim(state, "a", 1, claim_of())
    assert claim is not None
    assert claim.incarnation.generation == 5
