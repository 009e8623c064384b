"""What a handler's function asks for, read from its signature.

An async generator function takes its input and, if it likes, the `RunContext`. An async function takes its input and,
recognised by their annotations and in any order, an `AssistantStreamController` (`Controller`) or an
`ObjectStreamController` (`StateController`), and perhaps the `RunContext`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from tailrace.errors import RunError
from tailrace.message.controller import AssistantStreamController
from tailrace.message.object_controller import ObjectStreamController

BYTES, TEXT = "application/octet-stream", "text/plain; charset=utf-8"
Role: TypeAlias = Literal["run", "controller", "state"]
WRITERS: frozenset[Role] = frozenset({"controller", "state"})
_ASYNC_ITERATORS = (AsyncGenerator, AsyncIterable, AsyncIterator)


class InvalidHandler(RunError):
    """A handler that cannot be registered or loaded."""

    code = "invalid-handler"
    hint = (
        "A handler is `async def name(input: Model, run: RunContext) -> AsyncIterator[str]` that yields, "
        "or `async def name(input: Model, controller: Controller) -> None`."
    )


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
class Signature:
    """``roles`` are what the parameters after the input take, ``hints`` the function's annotations."""

    input: str
    roles: tuple[Role, ...]
    hints: Mapping[str, Any]

    @property
    def content_type(self) -> str:
        """Text for a generator that is annotated to yield str, else bytes."""
        returned = self.hints.get("return")
        yields = get_args(returned)[:1] if get_origin(returned) in _ASYNC_ITERATORS else ()
        return TEXT if yields == (str,) else BYTES


def read(function: Callable[..., Any], shown: str, *, told: bool) -> Signature:
    """The function's signature; ``told`` is whether its annotations are not needed. Raises `InvalidHandler`."""
    yields = inspect.isasyncgenfunction(function)
    if not yields and not inspect.iscoroutinefunction(function):
        raise InvalidHandler(f"{shown} is no async generator function: declare it `async def` and `yield` its chunks")
    hints = {} if told and yields else _hints(function, shown)
    first, *others = _positional(function, shown)
    roles = tuple(_role(hints.get(parameter.name)) for parameter in others)
    if yields:
        if WRITERS.intersection(roles):
            raise InvalidHandler(f"{shown} yields and takes a controller: do one of them")
        return Signature(first.name, ("run",) if others else (), hints)
    if not WRITERS.intersection(roles):
        raise InvalidHandler(
            f"{shown} is no async generator function and takes no controller: `yield` its chunks, or annotate a "
            "parameter with Controller"
        )
    if len({role if role == "run" else "writer" for role in roles}) < len(roles) or None in roles:
        names = ", ".join(parameter.name for parameter in others)
        raise InvalidHandler(f"{shown}: annotate one parameter of {names} with Controller, another with RunContext")
    return Signature(first.name, tuple(role for role in roles if role is not None), hints)


def _positional(function: Callable[..., Any], shown: str) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    keyword = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    most = 2 if inspect.isasyncgenfunction(function) else 3
    if not positional or len(required) > most or keyword:
        what = "one or two parameters: the input, and optionally the RunContext"
        if most > 2:
            what = "two or three parameters: the input, the controller, and optionally the RunContext"
        raise InvalidHandler(f"{shown} must take {what}")
    return positional[:most]


def _role(annotation: Any) -> Role | None:
    if annotation is RunContext:
        return "run"
    if isinstance(annotation, type) and issubclass(annotation, AssistantStreamController):
        return "controller"
    if isinstance(annotation, type) and issubclass(annotation, ObjectStreamController):
        return "state"
    return None


def _hints(function: Callable[..., Any], shown: str) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError) as error:
        raise InvalidHandler(
            f"{shown}: its annotations cannot be resolved ({error})",
            hint="Define the input's model at the module's top, or pass input=… and content_type=… to the decorator.",
        ) from error
