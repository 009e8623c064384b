"""A tool call as it is read: its arguments while they stream, then its response.

Theory: the reader holds the arguments' text so far. Whoever reads looks at what it says, and waits for the next piece
when that is not enough. So any number of readers may start at any time, one that stops costs nothing, and a slow one
finds several pieces at once.

Rules:

- A path is keys and indices from the arguments' root; no path is the arguments themselves.
- What is *complete* is what can no longer change: `tailrace.message.partial_json` says so.
- A text that is no JSON object (yet) changes nothing: the arguments are those that it said last.
- When the arguments end, every reader ends: `get` gives what is there, UNDEFINED if nothing is. That the text is bad
  JSON is for the one who runs the tool to say.
- When the answer ends and the arguments (or the response) have not, a reader gets what it has and then ToolCallEnded:
  an early end is never taken for a whole one.

Following ToolCallReader of assistant-stream 0.3.44, with these differences: there a reader of a call that never ends
waits for ever; a text turned bad leaves what some reader saw last, here what was said last; a path goes on into a
string; a value may come twice, texts may be empty or half a character.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeAlias

from tailrace.message.chunks import UNDEFINED, Json
from tailrace.message.errors import ToolCallEnded
from tailrace.message.growing_args import GrowingArgs
from tailrace.message.partial_json import PartialJson
from tailrace.message.tool_call import ToolResponse
from tailrace.message.utf16 import join_surrogates

Key: TypeAlias = str | int


class ToolCallArgsReader:
    """The arguments of one tool call. `feed` and `finish` are for the one who receives them."""

    def __init__(self) -> None:
        self._args = GrowingArgs()
        self._half = ""  # of a surrogate pair
        self._changed = asyncio.Event()
        self._error: ToolCallEnded | None = None
        self.finished = False

    # ── reading ──

    async def get(self, *path: Key) -> Json:
        """The value at ``path``, as soon as it is complete; UNDEFINED if the arguments end without it.

        Raises ToolCallEnded if the answer ends first.
        """
        async for args in self._states():
            if args.field_state(path) == "complete" and (value := _field(args, path)) is not UNDEFINED:
                return value
        return _field(self._args.parsed, path)

    async def stream_values(self, *path: Key) -> AsyncGenerator[Json]:
        """The value at ``path`` as it grows, the complete one last. Raises ToolCallEnded."""
        async for args in self._states():
            if (value := _field(args, path)) is not UNDEFINED:
                yield value
            if args.field_state(path) == "complete":
                return

    async def stream_text(self, *path: Key) -> AsyncGenerator[str]:
        """What is new in the string at ``path``, piece by piece; no character is cut in two. Raises ToolCallEnded."""
        seen = ""
        async for args in self._states():
            value, complete = _field(args, path), args.field_state(path) == "complete"
            if isinstance(value, str):
                if not complete and _is_half(value):
                    value = value[:-1]
                if len(value) > len(seen):
                    yield value[len(seen) :]
                seen = value
            if complete:
                return
        if isinstance(value := _field(self._args.parsed, path), str) and len(value) > len(seen):
            yield value[len(seen) :]  # a half whose other half never came

    async def for_each(self, *path: Key) -> AsyncGenerator[Json]:
        """The items of the array at ``path``, each as soon as it is complete. Raises ToolCallEnded."""
        index = 0
        async for args in self._states():
            items = _field(args, path)
            if not isinstance(items, list):
                continue
            while index < len(items) and args.field_state((*path, index)) == "complete":
                yield items[index]
                index += 1
            if args.field_state(path) == "complete":
                return

    async def _states(self) -> AsyncGenerator[PartialJson]:
        """What the arguments say now, and again whenever that changes, until they end."""
        last = None
        while True:
            changed, finished = self._changed, self.finished
            args = self._args.parsed
            if args != last:
                last = args
                yield args
                if changed.is_set():
                    continue  # while the reader was busy
            if finished:
                break
            await changed.wait()
        if self._error is not None:
            raise self._error

    # ── what is read ──

    @property
    def text(self) -> str:
        """The text of the arguments so far."""
        return str(self._args)

    def feed(self, text: str) -> None:
        """More of the arguments' text. After the end it is ignored."""
        if self.finished:
            return
        text, self._half = self._half + text, ""
        if _is_half(text):
            text, self._half = text[:-1], text[-1]
        self._args = self._args.append(text if text.isascii() else join_surrogates(text))
        self._wake()

    def finish(self, error: ToolCallEnded | None = None) -> None:
        """The arguments end; with ``error`` they end too early. Only the first call counts."""
        if not self.finished:
            self._args = self._args.append(self._half) if self._half else self._args
            self.finished, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class ToolCallResponseReader:
    """The response of one tool call, from whoever gives it: a tool here, or the stream."""

    def __init__(self) -> None:
        self._settled = asyncio.Event()
        self._outcome: ToolResponse | ToolCallEnded | None = None

    async def get(self) -> ToolResponse:
        """The response, once there is one. Raises ToolCallEnded if none can come any more."""
        await self._settled.wait()
        if not isinstance(self._outcome, ToolResponse):
            raise self._outcome or ToolCallEnded("The tool call has no response")
        return self._outcome

    def settle(self, outcome: ToolResponse | ToolCallEnded) -> None:
        """The response, or why there is none. Only the first call counts."""
        if self._outcome is None:
            self._outcome = outcome
            self._settled.set()


class ToolCallReader:
    """One tool call: ``args`` to read while they stream, ``response`` to wait for."""

    def __init__(self) -> None:
        self.args = ToolCallArgsReader()
        self.response = ToolCallResponseReader()

    def end(self) -> None:
        """Nothing more comes. Who still waits for arguments or a response gets ToolCallEnded."""
        error = ToolCallEnded("The answer ended before the tool call did")
        self.args.finish(error)
        self.response.settle(error)


def _is_half(text: str) -> bool:
    """Whether the other half of the last character may be still to come."""
    return "\ud800" <= text[-1:] <= "\udbff"


def _field(args: PartialJson, path: tuple[Key, ...]) -> Json:
    value = args.value
    for key in map(str, path):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return UNDEFINED
    return value
