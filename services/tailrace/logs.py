"""Structured logs: one line an event, to stderr, as console text or JSON.

An event is a short phrase; its facts are fields (``stream``, ``incarnation``, ``epoch``, ``code`` …). A chunk's content
is never a field. What libraries log through the standard library comes out as the same kind of line.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from typing import Any, Literal

import structlog

from tailrace.model import Incarnation, Lease, Mark, StreamInfo

Level = Literal["debug", "info", "warning", "error"]

# Libraries that say much at "info" which this project says itself, in one line of its own
_QUIET = ("uvicorn.access", "uvicorn.error", "faststream", "httpx", "httpcore", "openai", "nats", "asyncio")
# One that says as much at "error", ten lines a second while a broker is away, and shows content at "debug"
_SILENT = ("aiokafka",)


def configure(level: Level = "info", form: Literal["console", "json"] = "console") -> None:
    """Set up this process's logs. Calling it again replaces the set-up."""
    number = getattr(logging, level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(form, shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _QUIET:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(max(number, logging.WARNING) if number > logging.DEBUG else number)
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL if number > logging.DEBUG else logging.WARNING)


def _formatter(form: str, shared: list[Any]) -> logging.Formatter:
    drop: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        render: list[Any] = [
            structlog.processors.format_exc_info,
            _named,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        colors = sys.stderr.isatty()
        render = [structlog.processors.format_exc_info, _one_line, structlog.dev.ConsoleRenderer(colors=colors)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
        processors=[*drop, *render],
    )


def _one_line(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep an event on its line: a text with line ends (a traceback too) is shown quoted."""
    if "exception" in event:  # the renderer would print this field below the line
        event["traceback"] = event.pop("exception")
    event["event"] = str(event.get("event", "")).replace("\r", "\\r").replace("\n", "\\n")
    return event


def _named(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A traceback has one name, whoever logged it."""
    if "traceback" in event:
        event["exception"] = event.pop("traceback")
    return event


def traceback_of(error: BaseException) -> dict[str, str]:
    """The field with an error's traceback. Given as ``exc_info`` it would be rendered by whoever embeds this, and
    structlog's own default does so in colours, in seconds, and with every local value: inputs and keys too."""
    return {"traceback": "".join(traceback.format_exception(error)).rstrip("\n")}


def get(name: str) -> Any:
    """A logger of that name. It may be made before `configure`."""
    return structlog.get_logger(name)


def of(subject: StreamInfo | Lease | Mark | Incarnation | str) -> dict[str, Any]:
    """The fields that name a stream in a log line."""
    return dict(_fields(subject))


def _fields(subject: StreamInfo | Lease | Mark | Incarnation | str) -> Iterator[tuple[str, Any]]:
    if isinstance(subject, str):
        yield "stream", subject
        return
    if isinstance(subject, StreamInfo | Lease):
        yield "stream", subject.stream_id
    if isinstance(subject, Incarnation):
        yield "incarnation", str(subject)
        return
    if subject.incarnation is not None:
        yield "incarnation", str(subject.incarnation)
        yield "epoch", subject.epoch
