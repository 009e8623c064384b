"""One stream, followed to its ending through broken connections and restarted gateways; without I/O.

Theory. The position is the number of bytes received, with the incarnation that they belong to; both together name the
next byte at any gateway. A body that ends cleanly is a stream that is done. A body that breaks says nothing:
``/status`` tells whether the stream has a bad ending behind what was received, or goes on.

Rules. A start carries an id, so that repeating it joins instead of running twice. Bytes of another incarnation never
follow those of the first one: the stream was deleted. A body whose end cannot be told from a broken connection is
asked about like a broken one. Patience begins anew with every byte, and with a response that was open for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from tailrace.client.errors import AnswerTaken, GatewayError, Unreachable
from tailrace.client.exchange import RETRIED, Ask, Exchange, Head, Means, Patience, run_path
from tailrace.client.problems import bad_ending, problem, retry_after, status_of
from tailrace.errors import ClaimTimeout, CursorGone, StreamDeleted, StreamNotFound
from tailrace.model import Mark, Status, StreamInfo, validate_stream_id

STEADY: Final = 5.0  # seconds that a response is open, after which its break is a new trouble and not the old one
Notice = Callable[[str], None]


class Position(NamedTuple):
    """Where a reader of a stream is: behind ``offset`` bytes of an incarnation. JSON keeps it: it is a string, a number
    and a string or null. Without an incarnation an offset promises nothing across a delete."""

    id: str
    offset: int = 0
    incarnation: str | None = None


class Following(Exchange):
    """Follows a stream from ``position``, or from ``cursor``. ``start`` is the body of ``POST /v1/runs`` of a run that
    is to be started; ``notice`` hears ``lost`` and ``resumed``.

    Drivers report the parts of a body with `received` and its end with `ended`, both with the number that `begin` gave.
    """

    def __init__(
        self,
        position: Position,
        patience: Patience,
        *,
        cursor: str = "",
        start: bytes | None = None,
        notice: Notice = lambda event: None,
        means: Means | None = None,
    ) -> None:
        super().__init__(patience, means)
        self.stream_id = validate_stream_id(position.id)
        self.offset, self.incarnation = position.offset, position.incarnation
        self.head: Head | None = None  # of the newest response that carries the stream
        self.reconnects = 0
        self._cursor, self._start, self._notice = cursor, start, notice
        self._lost = self._doubts = self._done = self._queued = False
        self._trouble = ""
        self._opened_at: float | None = None
        self._turn = 0
        if cursor:
            mark = Mark.parse(position.id, cursor)
            self.offset, self.incarnation = mark.bytes, str(mark.incarnation)

    @property
    def position(self) -> Position:
        return Position(self.stream_id, self.offset, self.incarnation)

    def begin(self) -> int:
        """A new iteration takes over."""
        self._turn += 1
        return self._turn

    # ── what to do ──

    def _next(self) -> Ask | None:
        if self._done:
            return None
        if self._doubts:
            return Ask("GET", run_path(self.stream_id, "/status"))
        if self._start is not None:
            return Ask("POST", "/v1/runs", content=self._start)
        return Ask("GET", run_path(self.stream_id), self._where())

    def _where(self) -> dict[str, str]:
        if self._cursor:
            return {"cursor": self._cursor}
        if self.incarnation is not None:
            return {"offset": str(self.offset), "incarnation": self.incarnation}
        return {"offset": str(self.offset)} if self.offset else {}

    # ── what came of it ──

    def answered(self, head: Head) -> bool:
        """Raises `StreamDeleted` where another incarnation answers, `GatewayError` where it is no gateway's stream."""
        if self._doubts or head.status != 200:
            return False
        found = head.headers.get("tailrace-incarnation")
        coding = head.headers.get("content-encoding", "identity")
        if found is None or coding != "identity":
            what = "without Tailrace-Incarnation" if found is None else f"encoded ({coding})"
            hint = "Name the gateway itself, or a proxy that leaves its answers as they are."
            raise GatewayError(
                f"The answer is {what}: not a gateway's own", status=200, code="not-a-gateway", hint=hint
            )
        if self.head is not None and found != self.incarnation:
            raise StreamDeleted(f"{self.stream_id} was deleted and started again")
        if self.head is None:
            self._deadline, self._allowed = None, self._patience.resume
        self.incarnation, self.head, self._start = found, head, None
        self._opened_at = self._means.clock()
        if self._lost:
            self._lost = False
            self.reconnects += 1
            self._notice("resumed")
        return True

    def received(self, turn: int, part: bytes) -> None:
        """A part of the stream came. Raises `AnswerTaken`."""
        self._check(turn)
        self.offset += len(part)
        self._cursor, self._failures, self._deadline = "", 0, None

    def ended(self, turn: int) -> None:
        """The body ended cleanly. Raises `AnswerTaken`."""
        self._check(turn)
        assert self.head is not None
        if self.head.is_framed:
            self._done = True
        else:
            self.broke("The body ended with its connection")

    def _check(self, turn: int) -> None:
        if turn != self._turn:
            raise AnswerTaken(f"{self.stream_id} is read elsewhere")

    def broke(self, reason: str) -> None:
        """Raises `Unreachable` where patience is over."""
        if self.head is None:
            self._again(Unreachable(reason))
        elif self._doubts:
            self._go_on(reason)
        else:  # whether a connection was lost, or an ending was told, is for the status to say
            self._doubts, self._trouble = True, reason
            if self._opened_at is not None and self._means.clock() - self._opened_at >= STEADY:
                self._deadline, self._failures = None, 0
            self._opened_at = None

    def told(self, head: Head, body: bytes) -> None:
        if head.status != 200:
            self._refused(head, body)
        elif self._doubts:
            self._judge(status_of(body))
        else:
            raise AssertionError("a body that `answered` wanted part by part")

    def _judge(self, info: StreamInfo) -> None:
        """Raises the bad ending behind what was received."""
        if info.incarnation is not None and str(info.incarnation) != self.incarnation:
            raise StreamDeleted(f"{self.stream_id} was deleted and started again")
        if info.bytes <= self.offset and (ending := bad_ending(info)) is not None:
            raise ending
        if info.status is Status.DONE and info.bytes == self.offset:
            self._done, self._doubts = True, False
        else:  # of a stream that is done below the offset the next answer says so
            self._go_on(self._trouble)

    def _go_on(self, reason: str) -> None:
        self._doubts = False
        self._tell_lost()
        self._again(Unreachable(reason))

    def _tell_lost(self) -> None:
        if not self._lost:
            self._lost = True
            self._notice("lost")

    def _refused(self, head: Head, body: bytes) -> None:
        error = problem(head.status, head.reason, body)
        if head.status not in RETRIED:
            if self.head is not None and isinstance(error, StreamNotFound | CursorGone):
                raise StreamDeleted(f"{self.stream_id} was deleted, or has expired, while it was read") from error
            raise error
        if isinstance(error, ClaimTimeout) and not self._queued:
            # it is accepted: what is left to do is to read it
            self._queued, self._start, self._deadline, self._allowed = True, None, None, self._patience.resume
        if self._doubts:
            self._doubts = False
            self._tell_lost()
        self._again(error, retry_after(head.headers))
