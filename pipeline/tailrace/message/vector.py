"""A persistent sequence: adding to one, or changing an item, makes another that shares all but one short path with it.

Theory: a tree whose nodes have 32 children, and a tail of up to 32 items in front of it. A change copies one node a
level, so n changes cost n steps and n short copies, not n copies of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar, overload

T = TypeVar("T")

_BITS: Final = 5
_WIDTH: Final = 1 << _BITS
_MASK: Final = _WIDTH - 1


class Vector(Sequence[T], Generic[T]):
    """An immutable sequence. Equal to any sequence of equal items."""

    __slots__ = ("_length", "_root", "_shift", "_tail")

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._length = 0
        self._shift = _BITS
        self._root: tuple[Any, ...] = ()
        self._tail: tuple[T, ...] = ()
        built: Vector[T] = self
        for item in items:
            built = built.append(item)
        self._take(built._length, built._shift, built._root, built._tail)

    def _take(self, length: int, shift: int, root: tuple[Any, ...], tail: tuple[T, ...]) -> Vector[T]:
        self._length, self._shift, self._root, self._tail = length, shift, root, tail
        return self

    def append(self, item: T) -> Vector[T]:
        """This with one item more."""
        new: Vector[T] = object.__new__(Vector)
        if len(self._tail) < _WIDTH:
            return new._take(self._length + 1, self._shift, self._root, (*self._tail, item))
        shift, root = self._shift, self._root
        index = self._length - _WIDTH
        if index >> (shift + _BITS):
            root, shift = (root,), shift + _BITS
        return new._take(self._length + 1, shift, _put(root, shift, index, self._tail), (item,))

    def extend(self, items: Iterable[T]) -> Vector[T]:
        """This with more items."""
        new = self
        for item in items:
            new = new.append(item)
        return new

    def set(self, index: int, item: T) -> Vector[T]:
        """This with another item at ``index``, counted from 0. Raises IndexError."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        new: Vector[T] = object.__new__(Vector)
        start = self._length - len(self._tail)
        if index >= start:
            at = index - start
            tail = (*self._tail[:at], item, *self._tail[at + 1 :])
            return new._take(self._length, self._shift, self._root, tail)
        leaf = self._leaf(index)
        at = index & _MASK
        root = _put(self._root, self._shift, index, (*leaf[:at], item, *leaf[at + 1 :]))
        return new._take(self._length, self._shift, root, self._tail)

    def _leaf(self, index: int) -> tuple[T, ...]:
        node, shift = self._root, self._shift
        while shift:
            node = node[(index >> shift) & _MASK]
            shift -= _BITS
        return node

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...

    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError(index)
        start = self._length - len(self._tail)
        return self._tail[index - start] if index >= start else self._leaf(index)[index & _MASK]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        for start in range(0, self._length - len(self._tail), _WIDTH):
            yield from self._leaf(start)
        yield from self._tail

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vector | list | tuple):
            return NotImplemented
        return self is other or (len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True)))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Vector({list(self)!r})"


def _put(node: tuple[Any, ...], shift: int, index: int, leaf: tuple[Any, ...]) -> tuple[Any, ...]:
    if not shift:
        return leaf
    at = (index >> shift) & _MASK
    child = _put(node[at] if at < len(node) else (), shift - _BITS, index, leaf)
    return (*node[:at], child, *node[at + 1 :])
