"""What a gateway says, as errors and values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.client.errors import GatewayError
from tailrace.client.problems import bad_ending, problem, retry_after, status_of
from tailrace.errors import (
    BrokerUnavailable,
    CursorGone,
    InvalidInput,
    NoWorkers,
    OffsetOutOfRange,
    StorageFull,
    StreamCancelled,
    StreamErrored,
    StreamNotFound,
    TailraceError,
    TooManyReaders,
    UnknownHandler,
)
from tailrace.gateway import problems
from tailrace.model import Incarnation, Status


def told(status: int, **members: Any) -> TailraceError:
    return problem(status, "Reason", json.dumps(members).encode())


def test_a_gateways_problem_is_an_error_with_its_words() -> None:
    faults = [{"path": ["a", 0], "message": "no"}]
    error = told(422, code="invalid-input", detail="Refused", hint="Mend", errors=faults)
    assert isinstance(error, InvalidInput)
    assert (error.message, error.code, error.hint) == ("Refused: a.0: no", "invalid-input", "Mend")
    assert error.errors == tuple(faults)


ERRORS = [
    CursorGone("gone", incarnation="1-00000000000000aa"),
    OffsetOutOfRange("beyond", length=7),
    UnknownHandler("who?", known=["b", "a"]),
    InvalidInput("no"),
    BrokerUnavailable("away"),
    NoWorkers("nobody"),
    TooManyReaders("full"),
    StorageFull("full"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_what_the_gateway_writes_is_read_as_the_same_error(error: TailraceError) -> None:
    status = problems.STATUS[error.code]
    read = problem(status, "", json.dumps(problems.body(error, status)).encode())
    assert type(read) is type(error)
    assert (read.message, read.code, read.hint) == (error.message, error.code, error.hint)
    kept = ("known", "errors", "incarnation", "length")
    assert [getattr(read, name, None) for name in kept] == [getattr(error, name, None) for name in kept]


@pytest.mark.parametrize("code", sorted(problems.STATUS))
def test_every_code_of_a_gateway_stays_what_it_is(code: str) -> None:
    error = told(problems.STATUS[code], code=code, detail="it is so")
    assert error.code == code
    own = (
        *("invalid-json", "invalid-position", "invalid-parameter", "not-found", "method-not-allowed"),
        *("request-too-large", "unsupported-media-type", "invalid-request", "draining", "not-ready"),
    )
    if code in own:  # faults of the request that no other layer knows
        assert isinstance(error, GatewayError)
        assert error.status == problems.STATUS[code]


def test_a_missing_stream_is_told_from_a_missing_page() -> None:
    assert isinstance(problem(404, "Not Found", problems.MISSING_BODY), StreamNotFound)
    for body in (b"", b"<html>", b'{"error": "default backend"}', b"[]"):
        assert isinstance(problem(404, "Not Found", body), GatewayError)
    assert "502" in problem(502, "Bad Gateway", b"<html>").message


@given(
    st.integers(100, 599),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["code", "detail", "hint", "errors", "path", "message", "known", "length", "error"]),
                inner,
            )
        ),
    )
    | st.fixed_dictionaries({"code": st.sampled_from(sorted(problems.STATUS)), "errors": st.none() | st.integers()}),
)
def test_whatever_an_answer_holds_it_is_an_error(status: int, value: Any) -> None:
    error = problem(status, "Reason", json.dumps(value).encode())
    assert isinstance(error, TailraceError)
    assert isinstance(error.code, str)
    assert error.message


def test_an_ending_and_a_pause_are_read() -> None:
    def info(**members: Any) -> Any:
        base = {"id": "a", "bytes": 3, "incarnation": "1-00000000000000aa", "created_at": "2026-11-21T10:14:51.131Z"}
        return status_of(json.dumps(base | members).encode())

    assert bad_ending(info(status="done")) is None
    assert bad_ending(info(status="streaming")) is None
    ended = bad_ending(info(status="error", code="mine", message="it broke"))
    assert isinstance(ended, StreamErrored)
    assert (ended.code, ended.message) == ("mine", "it broke")
    assert isinstance(bad_ending(info(status="cancelled")), StreamCancelled)
    read = info(status="done")
    assert (read.stream_id, read.status, read.bytes) == ("a", Status.DONE, 3)
    assert (read.incarnation, read.created_at) == (Incarnation(1, 0xAA), 1795256091131)
    for body in (b"", b"{}", b'{"id": "a", "status": "asleep", "bytes": 1, "incarnation": null}'):
        with pytest.raises(GatewayError):
            status_of(body)
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({}) == 0
