"""Logs: one line an event, whoever logs it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from tailrace import logs
from tailrace.model import Incarnation, Lease, Mark, Status, StreamInfo


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs._QUIET + logs._SILENT}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


def say_all() -> None:
    log = logs.get("tailrace.test")
    log.info("first", **logs.of(Lease("s", Incarnation(2, 7), 3)))
    log.debug("never")
    log.warning("a text\nof two lines", field="a\nb")
    logging.getLogger("nats.aio").warning("from %s", "a library", extra={"stream": "s"})
    logging.getLogger("uvicorn.access").info("never")
    logging.getLogger("aiokafka.client").error("never")
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        log.exception("third")


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    say_all()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["first", "a text\nof two lines", "from a library", "third"]
    first = lines[0]
    assert (first["stream"], first["incarnation"], first["epoch"]) == ("s", "2-0000000000000007", 3)
    assert (first["level"], first["logger"]) == ("info", "tailrace.test")
    assert (lines[2]["logger"], lines[2]["stream"]) == ("nats.aio", "s")
    assert "ZeroDivisionError: why" in lines[3]["exception"]


def test_console_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console")
    say_all()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "stream=s" in lines[0]
    assert "ZeroDivisionError: why" in lines[3]


def failure() -> ZeroDivisionError:
    """An error whose frame holds more than its line says."""
    local = "".join(("a ", "key"))
    try:
        raise ZeroDivisionError(f"of {len(local)}")
    except ZeroDivisionError as error:
        return error


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_as_text_makes_the_same_line(
    form: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", form)
    error = failure()
    for fields in ({"exc_info": error}, logs.traceback_of(error)):
        logs.get("tailrace.test").error("failed", **fields, stream="s")
    lines = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "", capsys.readouterr().err).splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "ZeroDivisionError: of 5" in lines[1]


def test_a_traceback_as_text_has_no_local_value_whoever_renders_it(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.reset_defaults()
    logs.get("tailrace.test").error("failed", **logs.traceback_of(failure()))
    said = capsys.readouterr().out
    assert "ZeroDivisionError: of 5" in said
    assert "a key" not in said
    assert said.count("\n") == 1


def test_the_level_holds_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("error", "json")
    say_all()
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["third"]


def test_the_fields_that_name_a_stream() -> None:
    life = Incarnation(1, 1)
    named = {"incarnation": str(life), "epoch": 2}
    assert logs.of("s") == {"stream": "s"}
    assert logs.of(life) == {"incarnation": str(life)}
    assert logs.of(Mark(life, 2, 0, 0)) == named
    assert logs.of(StreamInfo("s", Status.STREAMING, incarnation=life, epoch=2)) == {"stream": "s"} | named
    assert logs.of(StreamInfo("s", Status.MISSING)) == {"stream": "s"}
