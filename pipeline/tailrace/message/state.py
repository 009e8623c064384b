"""The state that an answer carries, and the operations on it: set a value at a path, or append text to one.

Rules:

- A new state shares what an operation did not touch with the old one.
- A missing container on the way becomes an object. An array takes an index of its own or the next one.
- ``__proto__``, ``constructor`` and ``prototype`` are refused in a path, in both dialects (in 0.3.15 an array refuses
  them in the words for what is no index).
- A path has MAX_PATH keys at most: what one message may bring cannot make a state that nobody can write.
- Not strict: what cannot be applied is left out and told to ``drop``, and an index too large means the next one.
- Dialect 0.3.15 reads an index as JavaScript reads a number (``""`` is 0), not as its own spelling only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from tailrace.message.chunks import UNDEFINED, Json
from tailrace.message.dialect import LEGACY, NEWEST, Dialect
from tailrace.message.errors import InvalidUpdate

MAX_PATH: Final = 256
UNSAFE: Final = frozenset(("__proto__", "constructor", "prototype"))


class StateAccumulator:
    """Applies operations, one after another. ``state`` is the state after the last."""

    def __init__(
        self,
        state: Json = None,
        *,
        strict: bool = True,
        dialect: Dialect = NEWEST,
        drop: Callable[[str], object] = lambda message: None,
    ) -> None:
        self.state = state
        self._strict = strict or dialect == LEGACY
        self._legacy = dialect == LEGACY
        self._index = _loose_index if dialect == LEGACY else _exact_index
        self._drop = drop

    def append(self, operations: Iterable[Mapping[str, Json]]) -> None:
        """Applies operations. Strict: raises InvalidUpdate at the first that does not fit, and changes nothing."""
        state = self.state
        for operation in operations:
            try:
                state = self._apply(state, operation)
            except InvalidUpdate as error:
                if self._strict:
                    raise
                self._drop(f"Skipped unappliable gorp operation: Error: {error}")
        self.state = state

    def _apply(self, state: Json, operation: Mapping[str, Json]) -> Json:
        kind = operation.get("type")
        path, value = operation.get("path"), operation.get("value", UNDEFINED)
        if kind == "set":
            return self._update(state, _checked(path), lambda old: value)
        if kind == "append-text":
            return self._update(state, _checked(path), lambda old: _appended(old, value, _checked(path)))
        raise InvalidUpdate(f"Invalid operation type: {'undefined' if 'type' not in operation else kind}")

    def _update(self, state: Json, path: Sequence[Json], change: Callable[[Json], Json]) -> Json:
        frames: list[tuple[dict[str, Json] | list[Json], str | int | None]] = []
        for depth, segment in enumerate(path):
            state = {} if state is None or state is UNDEFINED else state
            key = str(segment)
            if not isinstance(state, dict | list):
                raise InvalidUpdate(f"Invalid path: {_brackets(path[depth:])}")
            if key in UNSAFE and not (self._legacy and isinstance(state, list)):
                raise InvalidUpdate(f"Unsafe gorp path segment: {key}")
            if isinstance(state, list):
                index = self._in_array(key, state, path[depth:])
                frames.append((state, index))
                state = state[index] if index is not None and index < len(state) else UNDEFINED
            else:
                frames.append((state, key))
                state = state.get(key, UNDEFINED)
        state = change(state)
        for container, at in reversed(frames):
            state = _with(container, at, state)
        return state

    def _in_array(self, key: str, array: list[Json], rest: Sequence[Json]) -> int | None:
        index = self._index(key)
        if index is None:
            raise InvalidUpdate(f"Expected array index at {_brackets(rest)}")
        if index < 0 or (index > len(array) and self._strict):
            raise InvalidUpdate("Insert array index out of bounds")
        if index > len(array):
            self._drop(f"Clamped out-of-bounds gorp array index {key} to {len(array)}")
            return len(array)
        return int(index) if index == int(index) else None


def _with(container: dict[str, Json] | list[Json], at: str | int | None, value: Json) -> Json:
    if isinstance(container, dict):
        return {**container, at: value}
    if at is None:  # a fraction names no item, and JavaScript's JSON does not show it
        return list(container)
    assert isinstance(at, int)
    return [*container[:at], value, *container[at + 1 :]]


def _appended(old: Json, value: Json, path: Sequence[Json]) -> str:
    if not isinstance(old, str):
        raise InvalidUpdate(f"Expected string at path {_brackets(path)}")
    if not isinstance(value, str):
        raise InvalidUpdate("The value of append-text is a string")
    return old + value


def _checked(path: Json) -> Sequence[Json]:
    if not isinstance(path, list | tuple) or not all(isinstance(segment, str | int) for segment in path):
        raise InvalidUpdate("An operation's path is a list of keys")
    if len(path) > MAX_PATH:
        raise InvalidUpdate(f"An operation's path is longer than {MAX_PATH} keys")
    return path


def _brackets(path: Sequence[Json]) -> str:
    return f"[{', '.join(map(str, path))}]"


def _exact_index(key: str) -> float | None:
    """The integer whose own spelling ``key`` is."""
    digits = key.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or (digits[0] == "0" and key != "0"):
        return None
    return float(key) if len(key) < 22 else None


def _loose_index(key: str) -> float | None:
    """What JavaScript's Number makes of ``key``."""
    text = key.strip()
    if not text:
        return 0.0
    if "_" in text or text.lower().lstrip("+-") in ("inf", "infinity", "nan"):
        return None
    try:
        return float(int(text, 0)) if text[:2].lower() in ("0x", "0o", "0b") else float(text)
    except (ValueError, OverflowError):
        return None
