"""Which release of the reference is spoken: the newest that this project follows, or the older one on request."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Dialect: TypeAlias = Literal["0.3.15", "0.3.44"]

NEWEST: Final[Dialect] = "0.3.44"
LEGACY: Final[Dialect] = "0.3.15"


def dialect_of(format: str) -> Dialect:
    """The dialect that a format's own name asks for, as in ``data-stream;v=0.3.15``."""
    return LEGACY if format.endswith(f";v={LEGACY}") else NEWEST
