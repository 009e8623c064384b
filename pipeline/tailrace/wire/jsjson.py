"""JSON as JavaScript has it: `stringify` writes the bytes of JSON.stringify, `parse` reads what JSON.parse reads.

Theory: both sides of a stream are compared byte by byte with a program in JavaScript, whose numbers are doubles, whose
strings are UTF-16 and whose objects put integer-like keys first.

Rules:

- Numbers: an int beyond 2**53 becomes the double next to it; NaN and the infinities are written ``null``; 1.0 is ``1``.
- Strings: half a surrogate pair is written ``\\udXXX``; two halves that meet are one character.
- Objects: keys that are array indices come first, ascending, when read and when written. ``__proto__`` is a mere key.
- UNDEFINED is left out of objects, is ``null`` in arrays, and the word ``undefined`` on its own.
- Nothing nests deeper than MAX_DEPTH: `JsonTooDeep`, never a RecursionError.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from itertools import accumulate
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.encoder import encode_basestring
from typing import Final, NoReturn

from tailrace.message.chunks import UNDEFINED, Json
from tailrace.message.utf16 import join_surrogates as join_surrogates
from tailrace.wire.errors import InvalidJson, JsonTooDeep, NotJson

MAX_DEPTH: Final = 256
"""How deep arrays and objects nest. JavaScript has no fixed number; nothing that people send comes near this one."""

_SAFE: Final = 2**53
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_INDEX: Final = re.compile(r"(?:0|[1-9][0-9]{0,9})\Z")
_MAX_INDEX: Final = 2**32 - 2


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def stringify(value: Json) -> str:
    """The text that JSON.stringify gives for a plain JSON value; it always encodes to UTF-8.

    Raises NotJson for what JSON cannot say and JsonTooDeep beyond MAX_DEPTH.
    """
    return well_formed(_write(value, 0))


def stringify_bytes(value: Json) -> bytes:
    """`stringify` in UTF-8."""
    text = _write(value, 0)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return well_formed(text).encode()


def quote(text: str) -> str:
    """A string literal. May hold lone surrogates as they are: pass the whole to `well_formed` before encoding it."""
    return encode_basestring(text)


def well_formed(text: str) -> str:
    """JSON text whose surrogates are whole: halves that meet are joined, a lone one becomes ``\\udXXX``."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", join_surrogates(text))


def number(value: float) -> str:
    """A double as JavaScript prints it."""
    if value != value or value in (float("inf"), float("-inf")):
        return "null"
    if value == int(value) and -_SAFE <= value <= _SAFE:
        return str(int(value))
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # the value is 0.DIGITS * 10**point
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if 0 < point <= 21:
        padded = digits.ljust(point, "0")
        return sign + padded[:point] + ("." + padded[point:] if len(padded) > point else "")
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = "." + digits[1:] if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"


def _write(value: Json, depth: int) -> str:
    writer = _WRITERS.get(type(value))
    if writer is None:
        writer = next((write for cls, write in _WRITERS.items() if isinstance(value, cls)), None)
        if writer is None:
            raise NotJson(f"JSON has no {type(value).__name__}")
    return writer(value, depth)


def _write_int(value: int, depth: int) -> str:
    if -_SAFE <= value <= _SAFE:
        return int.__repr__(value)
    try:
        return number(float(value))
    except OverflowError:
        return "null"


def _write_array(value: list[Json] | tuple[Json, ...], depth: int) -> str:
    if depth >= MAX_DEPTH:
        raise JsonTooDeep(f"The value nests deeper than {MAX_DEPTH} levels")
    depth += 1
    return "[" + ",".join(["null" if item is UNDEFINED else _write(item, depth) for item in value]) + "]"


def _write_object(value: Mapping[str, Json], depth: int) -> str:
    if depth >= MAX_DEPTH:
        raise JsonTooDeep(f"The value nests deeper than {MAX_DEPTH} levels")
    depth += 1
    members = []
    for key, item in index_keys_first(value).items():
        if item is not UNDEFINED:
            members.append(encode_basestring(key) + ":" + _write(item, depth))
    return "{" + ",".join(members) + "}"


_WRITERS: Final[dict[type, Callable[[Json, int], str]]] = {
    str: lambda value, depth: encode_basestring(value),
    bool: lambda value, depth: "true" if value else "false",
    int: _write_int,
    float: lambda value, depth: number(value),
    type(None): lambda value, depth: "null",
    dict: _write_object,
    list: _write_array,
    tuple: _write_array,
    type(UNDEFINED): lambda value, depth: "undefined",
    Mapping: _write_object,
}


def index_keys_first(value: Mapping[str, Json]) -> Mapping[str, Json]:
    """The object with its array-index keys first, ascending, the others in their order; itself if it has none."""
    try:
        indices = [key for key in value if key[:1].isdigit() and _INDEX.match(key) and int(key) <= _MAX_INDEX]
    except TypeError:
        raise NotJson("A key of a JSON object is a str") from None
    if not indices:
        return value
    indices.sort(key=int)
    return {key: value[key] for key in dict.fromkeys([*indices, *value])}


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def parse(text: str, *, secure: bool = False, shallow: bool = False) -> Json:
    """The value that JSON.parse reads: ints as int up to 2**53 and as float beyond, objects in JavaScript's order.

    ``secure`` also refuses what would reach a prototype in JavaScript (a ``__proto__`` key, a ``constructor`` object
    with a ``prototype``) and skips one leading BOM, as upstream's own reader does. ``shallow`` is for who knows already
    that it does not nest too deep. Raises InvalidJson, and JsonTooDeep beyond MAX_DEPTH.
    """
    if text[:1] == '"':
        with contextlib.suppress(ValueError):
            string, end = scanstring(text, 1, True)
            if end == len(text):
                return string
    if secure and text.startswith("\ufeff"):
        text = text[1:]
    if not shallow and text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise JsonTooDeep(f"The text nests deeper than {MAX_DEPTH} levels")
    decoder = _ORDERING if _MAYBE_INDEX.search(text) else _PLAIN
    try:
        try:
            value, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined]  # half the way of decode
        except StopIteration:
            end = -1
        if end != len(text):
            value = decoder.decode(text)
    except RecursionError:
        raise JsonTooDeep("The text nests deeper than the stack allows here") from None
    except json.JSONDecodeError as error:
        raise InvalidJson(f"Not JSON: {error.msg} at position {error.pos}") from None
    if secure and ("prototype" in text or "__proto__" in text or "\\u00" in text):
        _refuse_prototypes(value)
    return value


def _int(text: str) -> int | float:
    if text == "-0":
        return -0.0
    if len(text) <= 16:
        value = int(text)
        if -_SAFE <= value <= _SAFE:
            return value
    return float(text)


def _constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


_PLAIN: Final = json.JSONDecoder(parse_int=_int, parse_constant=_constant)
_ORDERING: Final = json.JSONDecoder(parse_int=_int, parse_constant=_constant, object_hook=index_keys_first)
_MAYBE_INDEX: Final = re.compile(r'"(?:[0-9]|\\u003)')
_BETWEEN: Final = re.compile(r'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"?)++', re.DOTALL)
_STEP: Final = {"[": 1, "{": 1, "]": -1, "}": -1}


def _depth(text: str) -> int:
    return max(accumulate(map(_STEP.__getitem__, _BETWEEN.sub("", text)), initial=0))


def _refuse_prototypes(value: Json) -> None:
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            constructor = node.get("constructor")
            if "__proto__" in node or (isinstance(constructor, dict) and "prototype" in constructor):
                raise InvalidJson("Object contains forbidden prototype property")
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
