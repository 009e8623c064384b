"""Partial JSON: what an object looks like while its text still streams, and which of its fields are complete.

Theory: one left-to-right scan keeps a stack of what is open, the end of the longest prefix that can be closed
(``valid``), and the path of keys to the value that is still growing. Cutting the text at ``valid`` and closing what is
open gives JSON that an ordinary parser reads.

Rules:

- The scan judges nothing; invalid JSON is found by the parser that reads the result, and then there is no object.
- A text that is complete JSON is never mended.
- What the reference does, quirks included, is right: after a complete root everything is ignored (``{} x`` is ``{}``),
  a number keeps its last digit (``1e`` is ``1``), a literal is guessed from its first letter (``t`` is true), and only
  that guess keeps no path.
- Dialect 0.3.15 differs in three places: it cuts inside ``\\uXXXX``, stops a number at ``+``, and takes a blank after
  ``[`` as valid.
- A scanner is fed: text is read once, however many pieces it comes in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Literal, TypeAlias

from tailrace.message.errors import InvalidPartialJson
from tailrace.wire.errors import InvalidJson, JsonTooDeep
from tailrace.wire.jsjson import MAX_DEPTH, parse

FieldState: TypeAlias = Literal["complete", "partial"]

_LITERALS: Final = ("true", "false", "null")
_PLAIN: Final = re.compile(r'[^"\\]+')
_HEX: Final = frozenset("0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class PartialJson:
    """An object (or array) read from a partial text. ``path`` leads to the value that may still grow."""

    value: Any
    state: FieldState
    path: tuple[str, ...] = ()

    def field_state(self, field: Sequence[str | int]) -> FieldState:
        """Whether the value at ``field`` can still change; a field that is not there yet is partial."""
        value, growing = self.value, self.path
        if self.state == "complete":
            return "complete"
        for name in map(str, field):
            if not isinstance(value, dict | list):
                return "partial"
            if not _has(value, name):
                return "partial"
            if not growing or name != growing[0]:
                return "complete"
            value, growing = _child(value, name), growing[1:]
        return "partial"


def parse_partial_json(text: str, *, legacy: bool = False) -> PartialJson | None:
    """The object that ``text`` is, or is the beginning of; None if it is neither.

    The empty text is an empty partial object. ``legacy`` reads as 0.3.15 does.
    """
    scanner = PartialJsonScanner(legacy=legacy)
    scanner.feed(text)
    return scanner.parse()


def fix_json(text: str, *, legacy: bool = False) -> tuple[str, list[str]]:
    """The text cut and closed to be JSON, and the path to the growing value. Raises InvalidPartialJson."""
    scanner = PartialJsonScanner(legacy=legacy)
    scanner.feed(text)
    return scanner.fixed()


class _S(Enum):
    """What the scan is in; the value names how it is closed."""

    ROOT = auto()
    FINISH = auto()
    STRING = auto()
    ESCAPE = auto()
    UNICODE = auto()
    LITERAL = auto()
    NUMBER = auto()
    OBJECT_START = auto()
    OBJECT_KEY = auto()
    OBJECT_AFTER_KEY = auto()
    OBJECT_BEFORE_VALUE = auto()
    OBJECT_AFTER_VALUE = auto()
    OBJECT_AFTER_COMMA = auto()
    ARRAY_START = auto()
    ARRAY_AFTER_VALUE = auto()
    ARRAY_AFTER_COMMA = auto()


_IN_OBJECT: Final = frozenset(state for state in _S if state.name.startswith("OBJECT"))
_IN_ARRAY: Final = frozenset(state for state in _S if state.name.startswith("ARRAY"))
_AFTER_START: Final = {
    _S.ROOT: _S.FINISH,
    _S.OBJECT_BEFORE_VALUE: _S.OBJECT_AFTER_VALUE,
    _S.ARRAY_START: _S.ARRAY_AFTER_VALUE,
    _S.ARRAY_AFTER_COMMA: _S.ARRAY_AFTER_VALUE,
}
_OPENS: Final = {
    '"': _S.STRING,
    **dict.fromkeys("ftn", _S.LITERAL),
    **dict.fromkeys("-0123456789", _S.NUMBER),
    "{": _S.OBJECT_START,
    "[": _S.ARRAY_START,
}


class PartialJsonScanner:
    """Reads a growing text. ``feed`` costs what is fed; ``parse`` costs what was fed so far."""

    def __init__(self, *, legacy: bool = False) -> None:
        self._legacy = legacy
        self._pieces: list[str] = []
        self._length = 0
        self._valid = 0  # the end of the prefix that can be closed
        self._stack = [_S.ROOT]
        self._deepest = 0
        self._path: list[str] = []
        self._key: str | None = None
        self._literal = ""
        self._digits = 0
        self._broken = False

    @property
    def text(self) -> str:
        """All that was fed."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def parse(self) -> PartialJson | None:
        """As `parse_partial_json` of all that was fed."""
        text = self.text
        if not text:
            return PartialJson({}, "partial")
        shallow = self._deepest < MAX_DEPTH  # this scan knows it: looking again costs more than reading
        if self._stack == [_S.FINISH] and (value := _parse_object(text, shallow)) is not None:
            return PartialJson(value, "complete")
        if self._broken:
            return None
        fixed, path = self.fixed()
        value = _parse_object(fixed, shallow)
        return None if value is None else PartialJson(value, "partial", tuple(path))

    def fixed(self) -> tuple[str, list[str]]:
        """As `fix_json` of all that was fed. Raises InvalidPartialJson."""
        if self._broken:
            raise InvalidPartialJson("An object key is no JSON string")
        closing = [self.text[: self._valid]]
        for state in reversed(self._stack):
            if state is _S.STRING:
                closing.append('"')
            elif state in _IN_OBJECT:
                closing.append("}")
            elif state in _IN_ARRAY:
                closing.append("]")
            elif state is _S.LITERAL:
                closing.append(next(word for word in _LITERALS if word.startswith(self._literal))[len(self._literal) :])
        return "".join(closing), list(self._path)

    def feed(self, text: str) -> None:
        """Reads more text."""
        self._pieces.append(text)
        start, self._length = self._length, self._length + len(text)
        at, end = 0, len(text)
        while at < end and not self._broken:
            state = self._stack[-1]
            if state is _S.STRING and (run := _PLAIN.match(text, at)):
                at = run.end()
                self._valid = start + at
            elif state is _S.FINISH:
                return
            elif self._step(state, text[at], start + at + 1):
                at += 1
                if text[at - 1] > "\uffff" and self._stack[-1] is _S.ARRAY_AFTER_VALUE:
                    self._valid = start + at  # JavaScript reads its second half on its own

    def _step(self, state: _S, char: str, after: int) -> bool:
        """Takes one character that ends at ``after``; False if it must be read again in the state it left."""
        match state:
            case _S.ROOT | _S.OBJECT_BEFORE_VALUE | _S.ARRAY_AFTER_COMMA:
                self._start_value(state, char, after)
            case _S.ARRAY_START:
                self._array_start(char, after)
            case _S.STRING:
                self._string(char, after)
            case _S.ESCAPE:
                self._escape(char, after)
            case _S.UNICODE:
                return self._unicode(char, after)
            case _S.NUMBER:
                self._number(char, after)
            case _S.LITERAL:
                self._in_literal(char, after)
            case _S.ARRAY_AFTER_VALUE:
                self._array_after_value(char, after)
                if char not in ",]":
                    self._valid = after
            case _:
                self._object(state, char, after)
        return True

    def _start_value(self, state: _S, char: str, after: int) -> None:
        opened = _OPENS.get(char)
        if opened is None:
            return
        if char != "-":
            self._valid = after
        self._stack[-1] = _AFTER_START[state]
        self._stack.append(opened)
        self._deepest = max(self._deepest, len(self._stack))
        if opened is _S.LITERAL:
            self._literal = char
        elif self._key is not None:
            self._push_key(self._key)

    def _push_key(self, raw: str) -> None:
        try:
            key = parse(f'"{raw}"')
        except InvalidJson:
            self._broken = True
            return
        self._path.append(key)
        self._key = None

    def _close(self, after: int) -> None:
        self._valid = after
        self._leave()

    def _leave(self) -> None:
        self._stack.pop()
        self._key = self._path.pop() if self._path else None

    def _object(self, state: _S, char: str, after: int) -> None:
        if state is _S.OBJECT_KEY:
            if char == '"':
                self._stack[-1] = _S.OBJECT_AFTER_KEY
                return
            if char == "\\":
                self._stack.append(_S.ESCAPE)
            self._key = (self._key or "") + char
        elif state is _S.OBJECT_AFTER_KEY:
            if char == ":":
                self._stack[-1] = _S.OBJECT_BEFORE_VALUE
        elif state is _S.OBJECT_AFTER_VALUE:
            self._object_after_value(char, after)
        elif char == '"':
            self._stack[-1] = _S.OBJECT_KEY
            self._key = ""
        elif char == "}" and state is _S.OBJECT_START:
            self._close(after)

    def _object_after_value(self, char: str, after: int) -> None:
        if char == ",":
            self._stack[-1] = _S.OBJECT_AFTER_COMMA
        elif char == "}":
            self._close(after)

    def _array_start(self, char: str, after: int) -> None:
        if char == "]":
            self._close(after)
            return
        if self._legacy:
            self._valid = after
        self._key = "0"
        self._start_value(_S.ARRAY_START, char, after)

    def _array_after_value(self, char: str, after: int) -> None:
        if char == ",":
            self._stack[-1] = _S.ARRAY_AFTER_COMMA
            self._key = str(int(self._key) + 1) if self._key is not None and self._key.isdigit() else "NaN"
        elif char == "]":
            self._close(after)

    def _string(self, char: str, after: int) -> None:
        if char == '"':
            self._close(after)
        else:
            self._stack.append(_S.ESCAPE)

    def _escape(self, char: str, after: int) -> None:
        self._stack.pop()
        parent = self._stack[-1]
        if char == "u" and not self._legacy:
            self._stack.append(_S.UNICODE)
            self._digits = 0
        elif parent is _S.STRING:
            self._valid = after
        if parent is _S.OBJECT_KEY:
            self._key = (self._key or "") + char

    def _unicode(self, char: str, after: int) -> bool:
        parent = self._stack[-2]
        if char not in _HEX:
            self._stack.pop()
            return False
        self._digits += 1
        if self._digits == 4:
            self._stack.pop()
            if parent is _S.STRING:
                self._valid = after
        if parent is _S.OBJECT_KEY:
            self._key = (self._key or "") + char
        return True

    def _number(self, char: str, after: int) -> None:
        if char in "0123456789":
            self._valid = after
            return
        if char in "eE-." or (char == "+" and not self._legacy):
            return
        self._leave()
        if char in ",]" and self._stack[-1] is _S.ARRAY_AFTER_VALUE:
            self._array_after_value(char, after)
        elif char in ",}" and self._stack[-1] is _S.OBJECT_AFTER_VALUE:
            self._object_after_value(char, after)

    def _in_literal(self, char: str, after: int) -> None:
        grown = self._literal + char
        if any(word.startswith(grown) for word in _LITERALS):
            self._literal = grown
            self._valid = after
            return
        self._stack.pop()
        if self._stack[-1] is _S.OBJECT_AFTER_VALUE:
            self._object_after_value(char, after)
        elif self._stack[-1] is _S.ARRAY_AFTER_VALUE:
            self._array_after_value(char, after)


def _parse_object(text: str, shallow: bool) -> Any:
    """The object or array that ``text`` is, or None; one that could reach a prototype in JavaScript is refused."""
    try:
        value = parse(text, secure=True, shallow=shallow)
    except (InvalidJson, JsonTooDeep):
        return None
    return value if isinstance(value, dict | list) else None


def _has(value: dict[str, Any] | list[Any], name: str) -> bool:
    if isinstance(value, dict):
        return name in value
    return name == "length" or _index(value, name) is not None


def _child(value: dict[str, Any] | list[Any], name: str) -> Any:
    if isinstance(value, dict):
        return value[name]
    index = _index(value, name)
    return len(value) if index is None else value[index]


def _index(value: list[Any], name: str) -> int | None:
    if not name.isascii() or not name.isdigit() or (name != "0" and name.startswith("0")):
        return None
    return int(name) if len(name) < 16 and int(name) < len(value) else None
