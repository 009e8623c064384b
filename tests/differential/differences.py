"""Where Tailrace differs from upstream on purpose: one table.

A difference is a function from upstream's outcome to the one that Tailrace promises instead; it gives the outcome back
as it came where the difference does not apply. Tailrace is always compared with what comes out of all of them. So one
that is too wide fails the run by itself: it changes an outcome with which Tailrace agreed. And what is promised instead
is written down exactly: an excuse that only looked away could hide anything.

A function may look at Tailrace's own outcome to see *where* in the answer the difference lies, and at its error's
words; what else there must be it takes from upstream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import promised
import promised_bytes
from promised import Ask, Job, Outcome


@dataclass(frozen=True, slots=True)
class Difference:
    """``kinds`` are the jobs that it can apply to."""

    name: str
    reason: str
    kinds: tuple[str, ...]
    versions: tuple[str, ...]
    promised: Callable[[Job, Outcome, Outcome, Ask], Outcome]


def promise(
    job: Job, ours: Outcome, theirs: Outcome, ask: Ask, table: Sequence[Difference] | None = None
) -> tuple[Outcome, list[str]]:
    """The outcome that Tailrace must have, and the names of the differences that made it another than upstream's."""
    names = []
    for difference in DIFFERENCES if table is None else table:
        if job["do"] in difference.kinds and job["version"] in difference.versions:
            instead = difference.promised(job, ours, theirs, ask)
            if instead != theirs:
                names.append(difference.name)
                theirs = instead
    return theirs, names


BOTH_VERSIONS: Final = ("0.3.15", "0.3.44")
DIFFERENCES: Final = (
    Difference(
        "too-deep",
        "JSON that nests deeper than 256 levels is refused, so that nobody can exhaust the stack; JavaScript has no "
        "fixed limit.",
        ("decode",),
        BOTH_VERSIONS,
        promised_bytes.too_deep,
    ),
    Difference(
        "program-order",
        "Arguments and a response that are given with a tool call keep that order. Upstream writes the response first, "
        "and its 0.3.44 data stream then loses the arguments.",
        ("program",),
        BOTH_VERSIONS,
        promised.program_order,
    ),
    Difference(
        "left-open",
        "What a handler leaves open is closed when it ends; upstream's answer then never ends.",
        ("program",),
        BOTH_VERSIONS,
        promised.left_open,
    ),
    Difference(
        "no-part",
        "A chunk for a part that never opened is an error; 0.3.15 makes a part of nothing but a status.",
        ("accumulate",),
        ("0.3.15",),
        promised.no_part,
    ),
    Difference(
        "unsafe-path",
        "A path through a prototype is refused in both dialects; 0.3.15 follows it.",
        ("accumulate",),
        ("0.3.15",),
        promised.unsafe_update,
    ),
    Difference("unsafe-path in an object stream", "As `unsafe-path`.", ("object",), ("0.3.15",), promised.unsafe_frame),
    Difference("unsafe-path when read", "As `unsafe-path`.", ("decode",), ("0.3.15",), promised_bytes.unsafe_read),
    Difference(
        "path-filled",
        "A chunk without a path is the message's, and says so; 0.3.15 leaves the path out.",
        ("decode",),
        ("0.3.15",),
        promised_bytes.path_filled,
    ),
    Difference(
        "no-chunk",
        "What is no chunk is an error where it is read; 0.3.15 passes it on, and something fails later.",
        ("decode",),
        ("0.3.15",),
        promised_bytes.no_chunk,
    ),
    Difference(
        "cut-block",
        "A stream that ends within an event, without [DONE], fails, and that is all; 0.3.15 gives first what the lines "
        "of the event say so far.",
        ("decode",),
        ("0.3.15",),
        promised_bytes.cut_block,
    ),
    Difference(
        "wrong-payload",
        "A data stream frame whose payload has the wrong JSON type is an error (or is left out, with strict=False); "
        "upstream goes on with `undefined`.",
        ("decode",),
        BOTH_VERSIONS,
        promised_bytes.wrong_payload,
    ),
    Difference(
        "wrong-event",
        "The same for an event of a UI message stream and the operations of an object stream.",
        ("decode",),
        BOTH_VERSIONS,
        promised_bytes.wrong_frame,
    ),
    Difference(
        "long-line",
        "An error quotes 1000 characters of an unfinished line; upstream quotes all of it, however much a sender sent.",
        ("decode",),
        BOTH_VERSIONS,
        promised_bytes.long_line,
    ),
)
