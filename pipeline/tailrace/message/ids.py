"""Ids of tool calls and steps: seven alphanumeric characters. Randomness comes from outside; this layer has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

NewId: TypeAlias = Callable[[], str]
"""Gives a fresh id on every call."""

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LENGTH: Final = 7


def id_maker(below: Callable[[int], int]) -> NewId:
    """Ids from ``below(n)``, which gives a random integer in 0 … n-1, as ``secrets.randbelow`` does."""
    return lambda: "".join(ALPHABET[below(len(ALPHABET))] for _ in range(LENGTH))
