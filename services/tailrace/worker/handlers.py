"""Handlers: what a worker runs, described by the function itself.

A handler is an async generator function of bytes or str. Its first parameter is the run's input, validated by that
parameter's annotation; a second one, if there is one, is the `RunContext`. The annotation of what it yields chooses the
content type. What cannot be read from the function is said to the decorator::

    @handler("shout")
    async def shout(input: Prompt, run: RunContext) -> AsyncIterator[str]:
        yield input.text.upper()
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args, get_origin, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from tailrace.errors import InvalidInput, RunError

TEXT, BYTES = "text/plain; charset=utf-8", "application/octet-stream"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ASYNC_ITERATORS = (AsyncGenerator, AsyncIterable, AsyncIterator)


class InvalidHandler(RunError):
    """A handler that cannot be registered or loaded."""

    code = "invalid-handler"
    hint = "A handler is `async def name(input: Model, run: RunContext) -> AsyncIterator[str]` that yields."


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a handler may know of its run. ``attempt`` is 1 unless a worker was lost before this one;
    ``headers`` are the response headers that the run's readers get."""

    stream_id: str
    handler: str
    attempt: int = 1
    format: str = "bytes"
    content_type: str = BYTES
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered handler. Calling it calls the function, as if it were not decorated."""

    name: str
    function: Callable[..., AsyncIterator[bytes | str]]
    input: TypeAdapter[Any]
    policy: str
    content_type: str
    headers: tuple[tuple[str, str], ...]
    takes_context: bool

    def __call__(self, *args: Any, **kwargs: Any) -> AsyncIterator[bytes | str]:
        return self.function(*args, **kwargs)

    @property
    def text(self) -> bool:
        """Whether its chunks are text in UTF-8, which is not split inside a character."""
        return self.content_type.startswith("text/")

    def schema(self) -> dict[str, Any]:
        """The JSON schema of its input."""
        return self.input.json_schema()

    def parse(self, text: bytes) -> Any:
        """Validate a run's input (JSON text). Raises `InvalidInput`."""
        try:
            return self.input.validate_json(text)
        except ValidationError as error:
            errors = [
                {"path": [*found["loc"]], "message": found["msg"], "type": found["type"]}
                for found in error.errors(include_url=False, include_context=False, include_input=False)
            ]
            raise InvalidInput(json.dumps(errors, ensure_ascii=False), errors=errors) from error

    def start(self, value: Any, context: RunContext) -> AsyncGenerator[bytes | str, None]:
        """The handler's chunks for this input."""
        chunks = self.function(value, context) if self.takes_context else self.function(value)
        return cast("AsyncGenerator[bytes | str, None]", chunks)  # `handler` made sure


def handler(
    name: str | None = None,
    *,
    input: Any = None,
    policy: str = "fail",
    content_type: str | None = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
) -> Callable[[Callable[..., AsyncIterator[Any]]], Handler]:
    """Make a handler of an async generator function.

    ``name`` defaults to the function's, ``input`` (a pydantic model, or any type that pydantic validates) to its first
    parameter's annotation, ``content_type`` to text for a function annotated to yield str, else to bytes. Raises
    `InvalidHandler`, which says what to mend.
    """
    pairs = tuple(headers.items() if isinstance(headers, Mapping) else headers)

    def register(function: Callable[..., AsyncIterator[Any]]) -> Handler:
        return _describe(function, name, input, policy, content_type, pairs)

    return register


def _describe(
    function: Callable[..., AsyncIterator[Any]],
    name: str | None,
    input: Any,
    policy: str,
    content_type: str | None,
    headers: tuple[tuple[str, str], ...],
) -> Handler:
    shown = getattr(function, "__qualname__", repr(function))
    if not inspect.isasyncgenfunction(function):
        raise InvalidHandler(f"{shown} is no async generator function: declare it `async def` and `yield` its chunks")
    name = name if name is not None else function.__name__
    if _NAME.fullmatch(name) is None:
        raise InvalidHandler(f"Not a handler's name: {name!r}", hint="Use 1 to 64 characters of A-Z a-z 0-9 _ -")
    if policy != "fail":
        raise InvalidHandler(f"{shown}: unknown policy {policy!r}", hint='The policy is "fail".')
    first, takes_context = _parameters(function, shown)
    hints = _hints(function, shown) if input is None or content_type is None else {}
    if input is None:
        if first not in hints:
            raise InvalidHandler(f"{shown}: annotate the parameter {first!r} with the input's model, or pass input=…")
        input = hints[first]
    try:
        adapter = TypeAdapter[Any](input)
        adapter.json_schema()
    except PydanticUserError as error:
        raise InvalidHandler(f"{shown}: pydantic cannot validate its input {input!r}: {error.message}") from error
    return Handler(name, function, adapter, policy, content_type or _content_type(hints), headers, takes_context)


def _parameters(function: Callable[..., Any], shown: str) -> tuple[str, bool]:
    """The name of the input's parameter, and whether there is one for the context."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    keyword = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not positional or len(required) > 2 or keyword:
        raise InvalidHandler(f"{shown} must take one or two parameters: the input, and optionally the RunContext")
    return positional[0].name, len(positional) > 1


def _hints(function: Callable[..., Any], shown: str) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError) as error:
        raise InvalidHandler(
            f"{shown}: its annotations cannot be resolved ({error})",
            hint="Define the input's model at the module's top, or pass input=… and content_type=… to the decorator.",
        ) from error


def _content_type(hints: Mapping[str, Any]) -> str:
    returned = hints.get("return")
    yields = get_args(returned)[:1] if get_origin(returned) in _ASYNC_ITERATORS else ()
    return TEXT if yields == (str,) else BYTES


def load(reference: str) -> list[Handler]:
    """The handlers that ``module:attribute`` names: one handler, a bare async generator function, or a list of them;
    ``module`` alone names all handlers in it. Raises `InvalidHandler`."""
    module_name, _, attribute = reference.partition(":")
    hint = "Name it as module:attribute; the module must be importable from where the worker starts."
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split(".") if attribute else ():
            found = getattr(found, part)
    except Exception as error:  # the module is the user's: anything may come out of it
        shown = f"{type(error).__name__}: {error}"
        raise InvalidHandler(f"Cannot load the handler {reference!r}: {shown}", hint=hint) from error
    if not attribute:
        found = [value for value in vars(found).values() if isinstance(value, Handler)]
    if isinstance(found, Handler):
        return [found]
    if inspect.isasyncgenfunction(found):
        return [handler()(found)]
    if isinstance(found, Sequence) and found and all(isinstance(one, Handler) for one in found):
        return list(found)
    raise InvalidHandler(f"{reference!r} is no handler, nor a list of handlers")


def by_name(handlers: Iterable[Handler]) -> dict[str, Handler]:
    """Handlers under their names. Raises `InvalidHandler` where two share one."""
    named: dict[str, Handler] = {}
    for one in handlers:
        if named.setdefault(one.name, one) is not one:
            raise InvalidHandler(f"Two handlers are named {one.name!r}", hint="Give one of them another name.")
    return named


def pieces(chunk: object, limit: int | None, *, text: bool) -> list[bytes]:
    """A yielded chunk as stored chunks: encoded, at most ``limit`` bytes each, none empty; text is cut between
    characters. Raises `TypeError` for anything but bytes and str, `UnicodeEncodeError` for a lone surrogate."""
    if isinstance(chunk, str):
        data = chunk.encode()
    elif isinstance(chunk, bytes):
        data = chunk
    elif isinstance(chunk, bytearray | memoryview):
        data = bytes(chunk)
    else:
        raise TypeError(f"The handler yielded {type(chunk).__name__}; yield bytes or str")
    if limit is None or len(data) <= limit:
        return [data] if data else []
    return _cut(data, limit, text or isinstance(chunk, str))


def _cut(data: bytes, limit: int, text: bool) -> list[bytes]:
    cut, start = [], 0
    while start < len(data):
        end = min(start + limit, len(data))
        if text and limit >= 4:
            # a character has at most three continuation bytes; what is no UTF-8 is cut where it falls
            back = next((n for n in range(4) if end == len(data) or data[end - n] & 0xC0 != 0x80), 0)
            end -= back
        cut.append(data[start:end])
        start = end
    return cut
