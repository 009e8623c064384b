"""What a handler writes a state with: an object that grows, for the object stream.

Theory: the writer's state and the reader's are the same, because both apply the same operations.

Rules:

- Every call makes one chunk, and a chunk becomes one frame: `enqueue` is for operations that belong together.
- An operation that does not fit raises InvalidUpdate; then the state is as before, and nothing was written.
- The initial state is an empty object unless another is given. A reader learns it with the first chunk, and never if
  none comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tailrace.message.dialect import NEWEST, Dialect
from tailrace.message.growing_state import WhenRead
from tailrace.message.state import StateAccumulator
from tailrace.message.values import UNDEFINED, Json, Undefined


@dataclass
class ObjectChunk:
    """The state after ``operations``, each ``{"type": "set" | "append-text", "path", "value"}``."""

    snapshot: Json = WhenRead()  # noqa: RUF009
    operations: list[Json] = field(default_factory=list)

    def to_json(self) -> dict[str, Json]:
        return {"snapshot": self.snapshot, "operations": self.operations}


class ObjectStreamController:
    """Writes one state. ``emit`` gets each chunk; ``initial`` is the state before the first."""

    def __init__(
        self,
        emit: Callable[[ObjectChunk], object],
        *,
        initial: Json | Undefined = UNDEFINED,
        dialect: Dialect = NEWEST,
    ) -> None:
        self._emit = emit
        self._state = StateAccumulator({} if initial is UNDEFINED else initial, dialect=dialect)

    @property
    def state(self) -> Json:
        """The state now. Do not change it: readers' snapshots share its parts."""
        return self._state.state

    def enqueue(self, operations: Sequence[Mapping[str, Json]]) -> None:
        """Applies the operations and writes them as one chunk. Raises InvalidUpdate."""
        self._state.append(operations)
        self._emit(ObjectChunk(self._state.tree, list(operations)))

    def set(self, path: Sequence[str], value: Json) -> None:
        """Puts a value at the path; ``[]`` is the whole state. Raises InvalidUpdate."""
        self.enqueue([{"type": "set", "path": list(path), "value": value}])

    def append_text(self, path: Sequence[str], text: str) -> None:
        """Adds to the string at the path. Raises InvalidUpdate."""
        self.enqueue([{"type": "append-text", "path": list(path), "value": text}])
