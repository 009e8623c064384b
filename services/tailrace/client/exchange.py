"""An exchange with a gateway, without I/O: what to send next, and what an answer or its absence means.

Theory. A driver (`tailrace.client.aio`, `tailrace.client.sync`) asks `Exchange.step` what to do and does it: it sends
an `Ask`, or lets a `Pause` pass. What comes of it, it reports: `answered` with the head of a response, `told` with its
body, `broke` where there is none. All decisions are made here and in the two kinds of exchange, `Call` and
`tailrace.client.following.Following`; drivers only translate.

Rules. What cannot be answered now (408, 429, 502, 503, 504, no connection) is asked again after a pause, until patience
is over: then the last reason is raised. A pause is what ``Retry-After`` asks for, and a random part of a bound that
doubles with every failure, so that those who lost the same gateway do not all come back at once. A pause that
``Retry-After`` makes longer than patience is not begun.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tailrace.client.errors import Unreachable
from tailrace.client.problems import problem, retry_after
from tailrace.errors import TailraceError

RETRIED = frozenset({408, 429, 502, 503, 504})
_MOST_DOUBLED = 16


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, in seconds. ``start``: until something is answered at all. ``resume``: until a stream that was
    answered before goes on. ``first_pause`` and ``longest_pause`` bound the random pauses between attempts."""

    start: float = 10.0
    resume: float = 300.0
    first_pause: float = 0.1
    longest_pause: float = 2.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. ``path`` begins with a slash; ``content`` is JSON."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Time to let pass before the next step."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Head:
    """A response without its body. The names of ``headers`` are found in any case; ``version`` is as ``HTTP/1.1``."""

    status: int
    reason: str
    headers: Mapping[str, str]
    version: str = "HTTP/1.1"

    @property
    def is_framed(self) -> bool:
        """Whether the end of the body can be told from the end of the connection."""
        return not self.version.startswith("HTTP/1.") or not {"content-length", "transfer-encoding"}.isdisjoint(
            name.lower() for name in self.headers
        )


@dataclass(frozen=True, slots=True)
class Means:
    """What an exchange takes from the world: a clock in seconds, and a random number between two others."""

    clock: Callable[[], float] = time.monotonic
    between: Callable[[float, float], float] = random.uniform


class Exchange:
    """What both kinds share: patience."""

    def __init__(self, patience: Patience, means: Means | None = None) -> None:
        self._patience = patience
        self._means = means or Means()
        self._allowed = patience.start
        self._deadline: float | None = None
        self._failures = 0
        self._pause: float | None = None

    def step(self) -> Ask | Pause | None:
        """What to do now; None where nothing is left to do."""
        if self._pause is not None:
            seconds, self._pause = self._pause, None
            return Pause(seconds)
        return self._next()

    def answered(self, head: Head) -> bool:
        """A response has begun. Whether its body is what was wanted, part by part; else `told` takes it whole."""
        return False

    def told(self, head: Head, body: bytes) -> None:
        """A response that came whole."""
        raise NotImplementedError

    def broke(self, reason: str) -> None:
        """The connection broke, or there was none."""
        raise NotImplementedError

    def _next(self) -> Ask | None:
        raise NotImplementedError

    def _again(self, error: TailraceError, at_least: float = 0.0) -> None:
        """Pause before the next step. Raises ``error`` where patience is over."""
        now = self._means.clock()
        if self._deadline is None:
            self._deadline = now + self._allowed
        left = self._deadline - now
        if left <= 0 or at_least > left:
            raise error
        bound = min(self._patience.longest_pause, self._patience.first_pause * 2**self._failures)
        self._failures = min(self._failures + 1, _MOST_DOUBLED)
        self._pause = min(at_least + self._means.between(0, bound), left)


class Call(Exchange):
    """One question with one answer, which may be asked twice without harm."""

    def __init__(self, ask: Ask, patience: Patience, *, ends_missing: bool = False, means: Means | None = None) -> None:
        """``ends_missing``: a 404 behind an answer that was lost is what the lost answer would have said."""
        super().__init__(patience, means)
        self.body: bytes | None = None
        self._ask, self._ends_missing = ask, ends_missing
        self._lost = False

    def _next(self) -> Ask | None:
        return self._ask if self.body is None else None

    def told(self, head: Head, body: bytes) -> None:
        if 200 <= head.status < 300 or (head.status == 404 and self._lost and self._ends_missing):
            self.body = body
            return
        error = problem(head.status, head.reason, body)
        if head.status not in RETRIED:
            raise error
        self._again(error, retry_after(head.headers))

    def broke(self, reason: str) -> None:
        self._lost = True
        self._again(Unreachable(reason))


def run_path(stream_id: str, what: str = "") -> str:
    """The path of a run. ``.`` and ``..`` are ids, and clients fold paths that hold them."""
    return f"/v1/runs/{stream_id.replace('.', '%2E') if not stream_id.strip('.') else stream_id}{what}"
