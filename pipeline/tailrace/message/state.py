"""The state that an answer carries, and the operations on it: set a value at a path, or append text to one.

Rules:

- A new state shares what an operation did not touch with the old one, and the beginning of a text that it adds to:
  n operations cost n times one, and a state's long texts are joined when it is read.
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
from tailrace.message.growing import GrowingText
from tailrace.message.growing_state import Place, Tree, child, container_of, longer, plain, with_child

MAX_PATH: Final = 256
UNSAFE: Final = frozenset(("__proto__", "constructor", "prototype"))

_PATHS: Final = (list, tuple)
_KEYS: Final = (str, int)
_TEXTS: Final = (str, GrowingText)


class StateAccumulator:
    """Applies operations, one after another.

    ``tree`` is the state after the last one, for an attribute that is `WhenRead`; ``state`` is it as plain values.
    """

    def __init__(
        self,
        state: Json = None,
        *,
        strict: bool = True,
        dialect: Dialect = NEWEST,
        drop: Callable[[str], object] = lambda message: None,
    ) -> None:
        self.tree: Tree = state
        self._strict = strict or dialect == LEGACY
        self._legacy = dialect == LEGACY
        self._index = _loose_index if dialect == LEGACY else _exact_index
        self._drop = drop

    @property
    def state(self) -> Json:
        """The state after the last operation. Do not change it: other states share its parts."""
        return plain(self.tree)

    def append(self, operations: Iterable[Mapping[str, Json]]) -> None:
        """Applies operations. Strict: raises InvalidUpdate at the first that does not fit, and changes nothing."""
        tree = self.tree
        for operation in operations:
            try:
                tree = self._apply(tree, operation)
            except InvalidUpdate as error:
                if self._strict:
                    raise
                self._drop(f"Skipped unappliable gorp operation: Error: {error}")
        self.tree = tree

    def _apply(self, tree: Tree, operation: Mapping[str, Json]) -> Tree:
        kind, value = operation.get("type"), operation.get("value", UNDEFINED)
        if kind not in ("set", "append-text"):
            raise InvalidUpdate(f"Invalid operation type: {'undefined' if 'type' not in operation else kind}")
        path = _checked(operation.get("path"))
        if kind == "set":
            return self._update(tree, path, lambda old: value)
        return self._update(tree, path, lambda old: _appended(old, value, path))

    def _update(self, tree: Tree, path: Sequence[Json], change: Callable[[Tree], Tree]) -> Tree:
        frames: list[tuple[Tree, Place | None]] = []
        for depth, segment in enumerate(path):
            tree = {} if tree is None or tree is UNDEFINED else tree
            container = tree if isinstance(tree, dict) else container_of(tree)
            key = str(segment)
            if container is None:
                raise InvalidUpdate(f"Invalid path: {_brackets(path[depth:])}")
            if key in UNSAFE and not (self._legacy and isinstance(container, list)):
                raise InvalidUpdate(f"Unsafe gorp path segment: {key}")
            place = self._in_array(key, container, path[depth:]) if isinstance(container, list) else key
            frames.append((tree, place))
            tree = child(tree, place)
        tree = change(tree)
        for above, place in reversed(frames):
            tree = with_child(above, place, tree)
        return tree

    def _in_array(self, key: str, array: list[Json], rest: Sequence[Json]) -> int | None:
        index = self._index(key)
        if index is None:
            raise InvalidUpdate(f"Expected array index at {_brackets(rest)}")
        if index < 0 or (index > len(array) and self._strict):
            raise InvalidUpdate("Insert array index out of bounds")
        if index > len(array):
            self._drop(f"Clamped out-of-bounds gorp array index {key} to {len(array)}")
            return len(array)
        return int(index) if index == int(index) else None  # a fraction names no item, and JavaScript's JSON hides it


def _appended(old: Tree, value: Json, path: Sequence[Json]) -> str | GrowingText:
    if not isinstance(old, _TEXTS):
        raise InvalidUpdate(f"Expected string at path {_brackets(path)}")
    if not isinstance(value, str):
        raise InvalidUpdate("The value of append-text is a string")
    return longer(old, value)


def _checked(path: Json) -> Sequence[Json]:
    if not isinstance(path, _PATHS) or not all(isinstance(segment, _KEYS) for segment in path):
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
