"""What an answer says: chunks, the controller that writes them, the messages that they build, and tools.

`tailrace.message.public` lists every name that this package gives. It is imported when one of them is first asked for,
not before: the wire formats need this package's chunks, and the rest of this package needs the wire formats' JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailrace.message.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    import tailrace.message.public as public

    if name == "__all__":  # a star asks for it
        return public.__all__
    if name not in public.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(public, name)


def __dir__() -> list[str]:
    import tailrace.message.public as public

    return sorted({*globals(), *public.__all__})
