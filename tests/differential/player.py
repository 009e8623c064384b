"""Plays controller programs as the reference was run: all that run at once take a step in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tailrace.message.chunks import Chunk, ErrorChunk, chunk_from_json, part_from_json
from tailrace.message.controller import AssistantStreamController, describe
from tailrace.message.dialect import Dialect
from tailrace.message.errors import UnknownPart
from tailrace.message.merge import Merge


def no_id() -> str:
    return "0000000"


class Boom(Exception):
    """What a program throws; in JavaScript it is an Error."""

    reported_as = "Error"


class Player:
    """Plays a program, and the programs that it merges, a step in turn, as the event loop does with upstream's."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.turns: deque[Iterator[None]] = deque()

    def play(self, prog: list[Any], out: list[Chunk]) -> None:
        """Raises UnknownPart, which upstream's merged stream ends with."""
        self._start(prog, out.append, lambda: None)
        while self.turns:
            turn = self.turns.popleft()
            if next(turn, self) is not self:
                self.turns.append(turn)

    def _start(self, prog: list[Any], emit: Callable[[Chunk], None], ended: Callable[[], None]) -> None:
        controller = AssistantStreamController(emit, new_id=no_id, dialect=self.dialect)
        turn = self._steps(prog, controller, ended)
        if next(turn, self) is not self:
            self.turns.append(turn)

    def _steps(
        self, prog: list[Any], controller: AssistantStreamController, ended: Callable[[], None]
    ) -> Iterator[None]:
        merges: list[Merge] = []

        def merged(merge: Merge) -> None:
            merge.close()
            merges.remove(merge)

        try:
            handles: dict[str, Any] = {}
            for op, *args in prog:
                if op == "merge":
                    merge = controller.merging()
                    merges.append(merge)
                    self._start(args[0], merge.push, partial(merged, merge))
                else:
                    self._call(controller, handles, op, args)
                yield
        except UnknownPart:
            raise
        except Exception as error:  # noqa: BLE001 - as `drive` does
            if not controller.closed:
                controller.enqueue(ErrorChunk(describe(error)))
        controller.close()
        while merges:
            yield
        controller.finish()
        ended()

    def _call(self, controller: AssistantStreamController, handles: dict[str, Any], op: str, args: list[Any]) -> None:
        first, *more = args or [None]

        def under(at: int) -> AssistantStreamController:
            return controller.with_parent_id(more[at]) if len(more) > at else controller

        match op:
            case "appendText":
                under(0).append_text(first)
            case "appendReasoning":
                under(0).append_reasoning(first)
            case "appendSummary" if self.dialect == "0.3.15":  # it knows no summaries
                under(1).append_reasoning(first)
            case "appendSummary":
                under(1).append_reasoning(first, summary=more[0])
            case "textPart":
                handles[first] = under(0).add_text_part()
            case "reasoningPart":
                handles[first] = under(0).add_reasoning_part()
            case "append":
                handles[first].append(more[0])
            case "toolPart":
                names = {"tool_call_id": "toolCallId", "args_text": "argsText", "args": "args", "response": "response"}
                options = {name: more[0][key] for name, key in names.items() if key in more[0]}
                handles[first] = under(1).add_tool_call_part(more[0]["toolName"], **options)
            case "args":
                handles[first].args.append(more[0])
            case "argsClose":
                handles[first].args.close()
            case "response":
                handles[first].set_response(more[0])
            case "close":
                handles[first].close()
            case "source" | "file" | "data":
                getattr(under(0), f"append_{op}")(part_from_json(first))
            case "enqueue":
                controller.enqueue(chunk_from_json(first))
            case "end":
                controller.close()
            case "throw":
                raise Boom(first)
            case _:
                raise AssertionError(op)
