"""Records on the wire: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.errors import CorruptRecord, RecordError, UnsupportedRecord
from tailrace.fold import Phase, State, fold
from tailrace.model import Claim, Ending, Incarnation, ProducerSeq, RunRef, Status
from tailrace.records import HEADER, ID, META, SIZES, Kind, Record, Stored, decode, encode

IDS = st.from_regex(r"[A-Za-z0-9_.:-]{1,256}", fullmatch=True)
INCARNATIONS = st.builds(Incarnation, st.integers(1, 999_999_999), st.integers(0, 2**64 - 1))
NONCES = st.from_regex(r"[0-9a-f]{1,24}", fullmatch=True)
EPOCHS = st.integers(1, 2**32 - 1)
COUNTS = st.integers(0, 2**39)
TEXT = st.text(st.characters())  # every code point, lone surrogates too
SECONDS = st.floats(0, 1e9)


def _record(*head: Any, **facts: Any) -> Record:
    """A record with these facts alone: asked for a named tuple, hypothesis would fill in the defaults too."""
    return Record(*head, **facts)


RUNS = st.builds(RunRef, TEXT, TEXT, TEXT, st.sampled_from(["fail", "continue"]))
HEADERS = st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple)
CLAIMS = st.builds(Claim, TEXT, SECONDS, SECONDS, TEXT, HEADERS, st.none() | RUNS, st.booleans())
ENDINGS = st.builds(Ending, st.sampled_from(list(Status)), st.none() | TEXT, st.none() | TEXT)
PRODUCERS = st.builds(ProducerSeq, TEXT, COUNTS, COUNTS)
CHUNKS = st.lists(st.binary(max_size=20), min_size=1, max_size=5).map(tuple)


def _records(kind: Kind, **facts: st.SearchStrategy[Any]) -> st.SearchStrategy[Record]:
    return st.builds(_record, st.just(kind), IDS, INCARNATIONS, EPOCHS, COUNTS, COUNTS, NONCES, **facts)


RECORDS = st.one_of(
    _records(Kind.CLAIM, claim=CLAIMS, ending=st.none() | ENDINGS),
    _records(Kind.CHUNKS, chunks=CHUNKS, producer=st.none() | PRODUCERS),
    _records(Kind.TAKEOVER, claim=st.none() | CLAIMS, ending=st.none() | ENDINGS),
    _records(Kind.FINISH, ending=ENDINGS),
    _records(Kind.EXPIRY, claim=st.none() | CLAIMS, ending=st.none() | ENDINGS),
    _records(Kind.TOMBSTONE, claim=st.none() | CLAIMS),
)
EXAMPLE = Record(Kind.CHUNKS, "a..b", Incarnation(3, 10), 2, 7, 70, "beef", (b"hello",))


@given(RECORDS)
def test_a_record_survives_the_wire(record: Record) -> None:
    headers, payload = encode(record)
    assert decode(headers, payload) == record


@given(RECORDS)
def test_headers_are_printable_ascii(record: Record) -> None:
    headers, _ = encode(record)
    assert all(" " <= character <= "~" for text in headers.values() for character in text)


@given(RECORDS)
def test_encoding_is_stable(record: Record) -> None:
    """A retry must be the identical message."""
    assert encode(record) == encode(decode(*encode(record)))


@given(CHUNKS)
def test_a_payload_is_the_answer_itself(chunks: tuple[bytes, ...]) -> None:
    headers, payload = encode(Record(Kind.CHUNKS, "a", Incarnation(1, 1), 1, 0, 0, "0", chunks))
    assert payload == b"".join(chunks)
    assert (SIZES in headers) == (len(chunks) != 1)
    assert META not in headers


def test_the_wire_form_is_pinned() -> None:
    headers, payload = encode(EXAMPLE)
    assert headers == {HEADER: "1;chunks;3-000000000000000a;2;7;70;beef", ID: "a..b"}
    assert payload == b"hello"


@pytest.mark.parametrize("version", ["2", "10", "9" * 5000])
def test_a_newer_version_is_refused_by_its_name(version: str) -> None:
    headers, payload = encode(EXAMPLE)
    headers[HEADER] = version + headers[HEADER][1:]
    with pytest.raises(UnsupportedRecord, match=version[:20]) as caught:
        decode(headers, payload)
    assert caught.value.code == "unsupported-record"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("version", ["", "0", "01", "-1", "1.0", "x", "²"])
def test_what_was_never_a_version_is_corrupt(version: str) -> None:
    headers, payload = encode(EXAMPLE)
    headers[HEADER] = version + headers[HEADER][1:]
    with pytest.raises(CorruptRecord):
        decode(headers, payload)


@pytest.mark.parametrize("headers", [None, {}, {ID: "a"}, {"tailrace": "1"}])
def test_a_message_of_somebody_else_is_corrupt(headers: dict[str, str] | None) -> None:
    with pytest.raises(CorruptRecord):
        decode(headers, b"")


def _with_meta(kind: str, meta: object) -> dict[str, str]:
    text = meta if isinstance(meta, str) else json.dumps(meta)
    return {HEADER: f"1;{kind};1-{1:016x};1;0;0;n", ID: "a", META: text}


CLAIM = {"owner": "m", "ttl": 1.0, "max_age": 2.0, "content_type": "text/plain", "headers": []}
RUN = {"handler": "h", "digest": "d", "command": "c", "policy": "fail"}


@pytest.mark.parametrize(
    "headers",
    [
        _with_meta("claim", {}),  # a claim without its facts
        _with_meta("finish", {}),  # an ending that does not say which
        _with_meta("claim", "[" * 100_000),
        _with_meta("claim", []),
        _with_meta("claim", {"claim": None}),
        _with_meta("claim", {"claim": {**CLAIM, "ttl": "NaN"}}),
        _with_meta("claim", '{"claim":{"owner":"m","ttl":Infinity,"max_age":1,"content_type":"","headers":[]}}'),
        _with_meta("claim", {"claim": {**CLAIM, "ttl": -1}}),
        _with_meta("claim", {"claim": {**CLAIM, "ttl": 10**400}}),
        _with_meta("claim", {"claim": {**CLAIM, "max_age": 1e300}}),
        _with_meta("claim", {"claim": {**CLAIM, "headers": [["a"]]}}),
        _with_meta("claim", {"claim": {**CLAIM, "run": {**RUN, "handler": 1}}}),
        _with_meta("claim", {"claim": {**CLAIM, "run": {**RUN, "more": "x"}}}),
        _with_meta("finish", {"ending": {"status": "unheard-of"}}),
        _with_meta("finish", {"ending": {"status": []}}),
        _with_meta("finish", {"ending": {"status": "error", "message": 5}}),
        _with_meta("chunks", {"producer": {"id": "p", "epoch": "0", "seq": 0}}),
        _with_meta("chunks", {"producer": {"id": "p", "epoch": 0, "seq": -1}}),
        {HEADER: "1;chunks;0-0000000000000001;1;0;0;n", ID: "a"},  # generations count from 1
        {HEADER: "1;chunks;1-0000000000000001;0;0;0;n", ID: "a"},  # so do epochs
        {HEADER: "1;chunks;1-0000000000000001;4294967296;0;0;n", ID: "a"},  # more than a cursor holds
        {HEADER: "1;chunks;1-0000000000000001;1;-1;0;n", ID: "a"},
        {HEADER: "1;chunks;1-0000000000000001;1;0;1_0;n", ID: "a"},
        {HEADER: "1;chunks;1-0000000000000001;1;0;1099511627776;n", ID: "a"},
        {HEADER: "1;chunks;1-0000000000000001;1;0;0", ID: "a"},
        {HEADER: "1;chunks;1-0000000000000001;1;0;0;n;n", ID: "a"},
        {HEADER: "1;nonsense;1-0000000000000001;1;0;0;n", ID: "a"},
        {HEADER: "1;chunks;1-0000000000000001;1;0;0;n"},
        {HEADER: "1;chunks;1-0000000000000001;1;0;0;n", ID: "a\n"},
    ],
)
def test_what_cannot_be_a_record_is_corrupt(headers: dict[str, str]) -> None:
    with pytest.raises(CorruptRecord):
        decode(headers, b"")


@pytest.mark.parametrize("sizes", ["", "4", "6", "5,1", "6,-1", "x", "1,,4", "3,-1,3", "+5", "2, 3"])
def test_sizes_must_cut_the_payload_exactly(sizes: str) -> None:
    headers, payload = encode(EXAMPLE)
    with pytest.raises(CorruptRecord):
        decode({**headers, SIZES: sizes}, payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def _damage(value: Any, data: st.DataObject) -> Any:
    """``value`` with one thing in it replaced by any JSON or removed."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        damaged = dict(value)
        if data.draw(st.booleans()):
            del damaged[key]
        else:
            damaged[key] = _damage(value[key], data)
        return damaged
    return data.draw(JSON)


@given(RECORDS, st.data())
def test_damage_raises_a_record_error_or_gives_what_the_fold_can_bear(record: Record, data: st.DataObject) -> None:
    headers, payload = encode(record)
    name = data.draw(st.sampled_from(sorted(headers)))
    if name == META:
        headers[META] = json.dumps(_damage(json.loads(headers[META]), data))
    else:
        at = data.draw(st.integers(0, len(headers[name]) - 1))
        headers[name] = headers[name][:at] + data.draw(TEXT) + headers[name][at + data.draw(st.integers(0, 3)) :]
    payload = data.draw(st.just(payload) | st.binary(max_size=20))
    try:
        damaged = decode(headers, payload)
    except RecordError:
        return
    for state in (State(), State(Phase.GONE, Incarnation(damaged.incarnation.generation - 1, 0))):
        after, _ = fold(state, Stored(1, 0, 0, damaged))
        after, _ = fold(after, Stored(2, 1, 1, EXAMPLE))
        assert after.expires_ms is None or after.expires_ms >= 0
        assert after.mark is None or after.mark.cursor("a")


@given(st.dictionaries(st.sampled_from([HEADER, ID, META, SIZES]), TEXT), st.binary())
def test_noise_raises_a_record_error(headers: dict[str, str], payload: bytes) -> None:
    with pytest.raises(RecordError):
        decode(headers, payload)
