"""A state in which text grows: a tree of plain values, but for the long texts that operations append to.

Theory: a string is copied to grow, and so is every container above it. A text longer than SHORT is kept beside its
container instead, as a `GrowingText`, and the container stays as it is; the container above keeps that pair beside
itself, and so on to the root. What an append costs is then its text and the depth of its path. A tree becomes plain
values when somebody reads it, and each pair once: trees that share a pair share what was made of it.

Rules:

- A pair (`Grown`) always has a text that grows in it. Its container has a value of old at each of those places.
- Where nothing grows the values are plain, and shared with the trees before and after.
- Halves of a surrogate pair that come in two operations are one character, as in UTF-16.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from tailrace.message.growing import GrowingText
from tailrace.message.utf16 import join_surrogates
from tailrace.message.values import UNDEFINED, Json

SHORT: Final = 1024
"""The length up to which a text is a plain string: to copy one costs less than to keep pieces."""

Container: TypeAlias = dict[str, Json] | list[Json]
Place: TypeAlias = str | int
Tree: TypeAlias = Any
"""A plain JSON value, a GrowingText or a Grown."""


class Grown:
    """A container, and what grows in it by its place. Immutable."""

    __slots__ = ("_plain", "container", "growing")

    def __init__(self, container: Container, growing: dict[Place, Tree]) -> None:
        self.container = container
        self.growing = growing
        self._plain: Json = None

    def plain(self) -> Json:
        """The plain container: the same one at every call."""
        if self._plain is None:
            made: Any = self.container.copy()
            for place, tree in self.growing.items():
                made[place] = plain(tree)
            self._plain = made
        return self._plain


_GROWING: Final = (GrowingText, Grown)  # made once: these are looked at for every step of every path


_CONTAINERS: Final = (dict, list)


def plain(tree: Tree) -> Json:
    """The tree as str, list, dict and so on."""
    if not isinstance(tree, _GROWING):
        return tree
    return tree.plain() if isinstance(tree, Grown) else str(tree)


def container_of(tree: Tree) -> Container | None:
    """The tree's container, good for its keys and its length; None for what is none."""
    if isinstance(tree, _CONTAINERS):
        return tree
    return tree.container if isinstance(tree, Grown) else None


def child(tree: Tree, place: Any) -> Tree:
    """What is at a key, or at an index that may be behind the last one; UNDEFINED if nothing is, or at None."""
    if isinstance(tree, dict):
        return tree.get(place, UNDEFINED)
    if isinstance(tree, Grown):
        return tree.growing[place] if place in tree.growing else child(tree.container, place)
    return tree[place] if place is not None and place < len(tree) else UNDEFINED


def with_child(tree: Tree, place: Any, new: Tree) -> Tree:
    """The tree with another child; at no place (None), a copy."""
    if isinstance(new, _GROWING):
        container, growing = (tree.container, tree.growing) if isinstance(tree, Grown) else (tree, {})
        return Grown(container, {**growing, place: new})
    if isinstance(tree, dict):
        return {**tree, place: new}
    if isinstance(tree, list):
        return list(tree) if place is None else [*tree[:place], new, *tree[place + 1 :]]
    container = with_child(tree.container, place, new)
    growing = {at: grown for at, grown in tree.growing.items() if at != place}
    return Grown(container, growing) if growing else container


def longer(text: str | GrowingText, more: str) -> str | GrowingText:
    """The text and more of it."""
    if isinstance(text, GrowingText):
        return text.append(more)
    if len(text) + len(more) > SHORT:
        return GrowingText().append(text).append(more)
    both = text + more
    return join_surrogates(both) if "\udc00" <= more[:1] <= "\udfff" else both


class WhenRead:
    """An attribute that is set to a tree and read as plain values. As a dataclass's field it is None by default."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __set__(self, owner: Any, tree: Tree) -> None:
        owner.__dict__[self._name] = tree

    def __get__(self, owner: Any, cls: type) -> Json:
        if owner is None:
            return None
        tree = owner.__dict__[self._name]
        if isinstance(tree, _GROWING):
            tree = owner.__dict__[self._name] = plain(tree)
        return tree
