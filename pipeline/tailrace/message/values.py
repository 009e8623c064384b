"""What chunks and parts are made with: UNDEFINED, and a class's JSON object with its keys in order.

A class lists its attributes in ``json_order``, the order in which upstream writes the keys. An object that came with
another order, or with keys that the class does not know, stays in ``source``, and `to_json` gives the same back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from typing import Any, ClassVar, Final, Self, TypeAlias

Json: TypeAlias = Any
"""A plain JSON value: None, bool, int, float, str, list, dict with str keys (and UNDEFINED where JavaScript has it)."""


class Undefined(Enum):
    """The type of UNDEFINED: an absent key, as opposed to None, which is ``null``."""

    UNDEFINED = "undefined"

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "UNDEFINED"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return only_instances(cls)


UNDEFINED: Final = Undefined.UNDEFINED


def only_instances(cls: type) -> Any:
    """For pydantic: no JSON value ever stands for one of these."""
    from pydantic_core import core_schema  # only who validates pays for the import

    return core_schema.is_instance_schema(cls)


def json_name(attribute: str) -> str:
    """The JSON key of an attribute: camelCase, except for the keys that upstream writes with an underscore."""
    if attribute.startswith("unstable_"):
        return attribute
    head, *rest = attribute.split("_")
    return head + "".join(map(str.capitalize, rest))


assign: Final = object.__setattr__  # the bases have no slots of their own, so a plain assignment there is no type's


class JsonObject:
    """JSON in and out for the classes below; ``json_order`` names their attributes in upstream's order."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Any] = {"alias_generator": json_name, "validate_by_name": True}
    json_order: ClassVar[tuple[str, ...]] = ()
    json_keys: ClassVar[dict[str, str]] = {}  # JSON key -> attribute, in order
    source: Mapping[str, Json] | None

    def __init_subclass__(cls) -> None:
        cls.json_keys = {json_name(attribute): attribute for attribute in cls.json_order}

    def json_value(self, attribute: str) -> Json:
        return getattr(self, attribute)

    def to_json(self) -> dict[str, Json]:
        """The JSON object, keys in order; a fresh dict whose payload values are shared with the chunk."""
        keys = self.json_keys
        names = keys if self.source is None else dict.fromkeys([*self.source, *keys])
        out: dict[str, Json] = {}
        for name in names:
            attribute = keys.get(name)
            value = self.json_value(attribute) if attribute is not None else (self.source or {})[name]
            if value is not UNDEFINED:
                out[name] = value
        return out

    def keep_source(self, value: Mapping[str, Json]) -> None:
        """Remember the object that this came from, if ``to_json`` would not give the same keys in the same order."""
        if list(value) != [name for name in self.json_keys if name in value]:
            assign(self, "source", value)

    def copy(self) -> Self:
        """Another object with the same values, for one that differs in some."""
        new = object.__new__(type(self))
        for attribute in self.json_keys.values():
            assign(new, attribute, getattr(self, attribute))
        assign(new, "source", self.source)
        return new


def source_field() -> Any:
    return field(default=None, init=False, compare=False, repr=False)
