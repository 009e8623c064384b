"""Handlers: what a worker runs, described by the function itself.

A handler yields bytes or str, or writes its answer with a controller. Its first parameter is the run's input, validated
by that parameter's annotation. The annotation of what it yields chooses the content type; a controller's answer is
encoded as the run's format asks. What cannot be read from the function is said to the decorator::

    @handler("shout")
    async def shout(input: Prompt, run: RunContext) -> AsyncIterator[str]:
        yield input.text.upper()

    @handler("chat")
    async def chat(input: Prompt, controller: Controller) -> None:
        controller.append_text(input.text)
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from tailrace.errors import InvalidInput
from tailrace.message.controller import AssistantStreamController
from tailrace.message.object_controller import ObjectStreamController
from tailrace.worker.output import Output, of_bytes, of_chunks, of_states
from tailrace.worker.signature import BYTES as BYTES
from tailrace.worker.signature import TEXT as TEXT
from tailrace.worker.signature import WRITERS, Role, read
from tailrace.worker.signature import InvalidHandler as InvalidHandler
from tailrace.worker.signature import RunContext as RunContext

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered handler. Calling it calls the function, as if it were not decorated."""

    name: str
    function: Callable[..., Any]
    input: TypeAdapter[Any]
    policy: str
    content_type: str
    headers: tuple[tuple[str, str], ...]
    roles: tuple[Role, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def takes_context(self) -> bool:
        return "run" in self.roles

    @property
    def takes_controller(self) -> bool:
        """Whether it writes with a controller; else it yields its chunks."""
        return not WRITERS.isdisjoint(self.roles)

    def output(self, format: str) -> Output:
        """What a run in this format writes; the empty one is the handler's own. Raises `UnknownFormat`."""
        if "state" in self.roles:
            return of_states(self.name, format, self.headers)
        if self.takes_controller:
            return of_chunks(self.name, format, self.headers)
        return of_bytes(self.name, format, self.content_type, self.headers)

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
        """The chunks that it yields for this input."""
        chunks = self.function(value, context) if self.takes_context else self.function(value)
        return cast("AsyncGenerator[bytes | str, None]", chunks)  # `handler` made sure

    async def answer(
        self, value: Any, controller: AssistantStreamController | ObjectStreamController, context: RunContext
    ) -> None:
        """Let it write its answer to this input."""
        given = {"run": context, "controller": controller, "state": controller}
        await self.function(value, *(given[role] for role in self.roles))


def handler(
    name: str | None = None,
    *,
    input: Any = None,
    policy: str = "fail",
    content_type: str | None = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
) -> Callable[[Callable[..., Any]], Handler]:
    """Make a handler of an async generator function, or of an async function that takes a controller.

    ``name`` defaults to the function's, ``input`` (a pydantic model, or any type that pydantic validates) to its first
    parameter's annotation, ``content_type`` to text for a function annotated to yield str, else to bytes. Raises
    `InvalidHandler`, which says what to mend.
    """
    pairs = tuple(headers.items() if isinstance(headers, Mapping) else headers)

    def register(function: Callable[..., Any]) -> Handler:
        return _describe(function, name, input, policy, content_type, pairs)

    return register


def _describe(
    function: Callable[..., Any],
    name: str | None,
    input: Any,
    policy: str,
    content_type: str | None,
    headers: tuple[tuple[str, str], ...],
) -> Handler:
    shown = getattr(function, "__qualname__", repr(function))
    signature = read(function, shown, told=input is not None and content_type is not None)
    name = name if name is not None else function.__name__
    if _NAME.fullmatch(name) is None:
        raise InvalidHandler(f"Not a handler's name: {name!r}", hint="Use 1 to 64 characters of A-Z a-z 0-9 _ -")
    if policy != "fail":
        raise InvalidHandler(f"{shown}: unknown policy {policy!r}", hint='The policy is "fail".')
    writes = not WRITERS.isdisjoint(signature.roles)
    if content_type is not None and writes:
        raise InvalidHandler(f"{shown}: a controller's content type is that of the run's format: pass none")
    if input is None:
        if signature.input not in signature.hints:
            told = f"annotate the parameter {signature.input!r} with the input's model, or pass input=…"
            raise InvalidHandler(f"{shown}: {told}")
        input = signature.hints[signature.input]
    try:
        adapter = TypeAdapter[Any](input)
        adapter.json_schema()
    except PydanticUserError as error:
        raise InvalidHandler(f"{shown}: pydantic cannot validate its input {input!r}: {error.message}") from error
    if writes:
        content_type = (of_states if "state" in signature.roles else of_chunks)(name, "", headers).content_type
    return Handler(name, function, adapter, policy, content_type or signature.content_type, headers, signature.roles)


def load(reference: str) -> list[Handler]:
    """The handlers that ``module:attribute`` names: one handler, a bare function that could be one, or a list of
    handlers; ``module`` alone names all handlers in it. Raises `InvalidHandler`."""
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
    if inspect.isasyncgenfunction(found) or inspect.iscoroutinefunction(found):
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
