"""Which release of the reference is spoken: the newest that this project follows, or the older one on request."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Dialect: TypeAlias = Literal["0.3.15", "0.3.44"]

NEWEST: Final[Dialect] = "0.3.44"
LEGACY: Final[Dialect] = "0.3.15"
