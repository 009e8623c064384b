"""What `tailrace.message` gives to whoever imports it."""

from __future__ import annotations

import tailrace.message
from tailrace.message import public


def test_a_star_gives_the_public_names_and_nothing_else() -> None:
    given: dict[str, object] = {}
    exec("from tailrace.message import *", given)
    del given["__builtins__"]
    assert sorted(given) == sorted(public.__all__)


def test_what_an_answer_is_written_and_read_with_is_public() -> None:
    """The types that public functions take and give can be named."""
    for name in ("ObjectStreamController", "ObjectChunk", "StateAccumulator", "NO_RESULT", "Path", "FinishReason"):
        assert name in public.__all__
    for name in ("ToolCallArgsReader", "ToolCallResponseReader"):
        assert getattr(tailrace.message, name) is getattr(public, name)
