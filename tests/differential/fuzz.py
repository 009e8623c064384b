"""One example of the fuzz: a controller program and, beside it, a byte stream, chunks, an object stream or a text.

Theory: upstream and Tailrace get the same jobs, Tailrace's outcome is compared with what the table of differences
makes of upstream's (see `differences`), and everything that a run has seen is counted, so that a run can show that it
looked at each operation, each format, each mutation and each difference.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from typing import Any

import ours
import streams
from compare import agree
from differences import promise
from hypothesis import strategies as st
from programs import VERSIONS, count_chunk, count_program, operations, programs, stray_chunks, values
from upstream import Upstream

from tailrace.wire.jsjson import parse, stringify

Job = dict[str, Any]

ENCODED = ("data-stream", "assistant-transport", "plain-text")
USES: list[Job] = [{"do": "accumulate"}, *({"do": "encode", "format": format} for format in ENCODED)]
"""What is done with chunks."""

_object_streams = st.tuples(st.none() | values, st.lists(st.lists(operations, max_size=3), max_size=5))
companions = st.one_of(
    st.tuples(st.just("stream"), streams.streams),
    st.tuples(st.just("stream"), streams.streams),
    st.tuples(st.just("stream"), streams.streams),
    st.tuples(st.just("chunks"), stray_chunks),
    st.tuples(st.just("object"), _object_streams),
    st.tuples(st.just("text"), streams.json_texts),
)
examples = st.tuples(programs, companions)


class Disagreement(AssertionError):
    """Tailrace does not do what it must. ``program`` is the one that showed it, if it was one."""

    program: list[Any] | None = None


class Fuzz:
    """Checks examples, and counts: ``seen`` what was in them, ``fired`` which differences there really were."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.seen: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()

    def example(self, example: tuple[list[Any], tuple[str, Any]]) -> None:
        program, (kind, companion) = example
        self.program(program)
        getattr(self, kind)(companion)

    def run(self, check: Callable[[], None]) -> None:
        """Runs a check. A program that fails is made smaller still, step by step, than hypothesis leaves it."""
        try:
            check()
        except Disagreement as found:
            smallest = found
            at = 0
            while smallest.program is not None and at < len(smallest.program):
                try:
                    self.program(without_step(smallest.program, at))
                    at += 1
                except Disagreement as smaller:
                    smallest = smaller
            raise smallest from None

    def program(self, program: list[Any]) -> None:
        try:
            self._program(program)
        except Disagreement as found:
            found.program = program
            raise

    def _program(self, program: list[Any]) -> None:
        """The program's chunks; and of those, whatever they were, the messages and the bytes."""
        count_program(program, self.seen)
        self.seen["programs"] += 1
        jobs: list[Job] = [{"do": "program", "version": version, "prog": program, "then": USES} for version in VERSIONS]
        for job, theirs in zip(jobs, self.upstream.run(*jobs), strict=True):
            self.check(job, theirs)
            chunks = [parse(text) for text in theirs["chunks"]]
            for chunk in chunks:
                count_chunk(chunk, self.seen, "written")
            for use, then in zip(USES, theirs["then"], strict=True):
                self.check({**use, "version": job["version"], "chunks": chunks}, then)

    def chunks(self, chunks: list[Any]) -> None:
        for chunk in chunks:
            count_chunk(chunk, self.seen, "stray")
        self._all([{**use, "version": version, "chunks": chunks} for version in VERSIONS for use in USES])

    def stream(self, stream: dict[str, Any]) -> None:
        format = stream["format"]
        self.seen.update([f"{format} bytes", *(f"mutation {kind}" for kind in stream["mutations"])])
        self.seen["stream cut in lines"] += bool(stream["cuts"])
        self.seen["stream unchanged"] += not stream["mutations"]
        self.seen["strict=False"] += not stream["strict"]
        self.seen.update(stream["kinds"])
        dialects = VERSIONS[1:] if format == "ui-message-stream" else VERSIONS
        self._all([streams.job(version, stream) for version in dialects])

    def object(self, source: tuple[Any, list[Any]]) -> None:
        initial, frames = source
        self.seen.update(f"operation {operation['type']}" for frame in frames for operation in frame)
        given = {} if initial is None else {"initial": initial}
        self._all([{"do": "object", "version": version, "frames": frames, **given} for version in VERSIONS])

    def text(self, text: str) -> None:
        self._all(
            [{"do": kind, "version": version, "text": text} for kind in ("json", "partial") for version in VERSIONS]
        )

    def _all(self, jobs: list[Job]) -> None:
        for job, theirs in zip(jobs, self.upstream.run(*jobs), strict=True):
            if job["do"] == "partial":
                job["fields"] = theirs.get("fields", [])
            self.check(job, theirs)

    def check(self, job: Job, theirs: Job) -> list[str]:
        """The names of the differences that there were. Raises Disagreement."""
        self.seen[f"job {job['do']}"] += 1
        if job["do"] == "decode" and "error" in theirs:
            self.seen["decode ends in an error" if theirs["error"] else "decode ends well"] += 1
        mine = ours.run(job)
        if theirs.get("hung") or "threw" in theirs:
            raise Disagreement(f"Upstream gave up: {theirs}\n{show(job)}")
        must, names = promise(job, mine, theirs, lambda other: self.upstream.run(other)[0])
        wrong = agree(job, mine, must)
        if wrong is not None:
            outcomes = f"  ours: {brief(mine)}\n  upstream: {brief(theirs)}"
            raise Disagreement(f"{wrong}\n  job: {show(job)}\n{outcomes}\n  differences: {names}")
        self.fired.update(names)
        return names


def without_step(program: list[Any], at: int) -> list[Any]:
    """The program without one step, and without those that use the part which it opens."""
    opened = program[at][1] if program[at][0] in ("textPart", "reasoningPart", "toolPart") else None
    uses = ("append", "args", "argsClose", "response", "close")
    return [
        step
        for number, step in enumerate(program)
        if number != at and not (step[0] in uses and opened is not None and step[1] == opened)
    ]


def show(job: Job) -> str:
    shown = {key: value for key, value in job.items() if key != "then"}
    if "b64" in shown:
        shown["bytes"] = repr(base64.b64decode(shown.pop("b64")))
    return stringify(shown)


def brief(outcome: Job) -> str:
    return stringify({key: value for key, value in outcome.items() if key not in ("logged", "then")})
