"""Who is lost: judged by silence, and only while the observer hears.

Theory: a process that beats and gets its own beat back has ears. Beats come in the broker's order, so when its own beat
of broker time T returns, it has heard every beat stored before T. A member that was silent from one own beat to another
for longer than the lease's time is lost.

Rules:

- All times are the broker's. This process's clock plays no part.
- Whatever breaks hearing restarts the count for everybody: the start, a pause, a reconnect. A pause shows as a gap
  between two own beats.
- A member never heard counts from the first own beat after somebody asked for it.
- A member that says goodbye is lost at once.
"""

from __future__ import annotations


class Liveness:
    """``ttl_ms``: the lease's time. ``gap_ms``: the longest time between own beats that is not a pause."""

    def __init__(self, own_id: str, ttl_ms: int, gap_ms: int) -> None:
        self.own_id = own_id
        self.ttl_ms = ttl_ms
        self.gap_ms = gap_ms
        self._heard: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._own_ms: int | None = None
        self._since_ms: int | None = None
        self._own_beats = 0

    @property
    def settled(self) -> bool:
        """Whether one interval between own beats was heard since the last restart."""
        return self._own_beats >= 2

    def restart(self) -> None:
        """Hearing was broken (a reconnect, an overflow): nobody's silence counts until the next own beat."""
        self._since_ms = None
        self._own_beats = 0

    def heard(self, member_id: str, time_ms: int, *, goodbye: bool = False) -> None:
        """A beat of ``member_id``, stored at broker time ``time_ms``, was delivered."""
        if member_id == self.own_id:
            self._own_beat(time_ms)
        if goodbye:
            self._gone[member_id] = time_ms
        elif time_ms >= self._heard.get(member_id, 0):
            self._heard[member_id] = time_ms

    def _own_beat(self, time_ms: int) -> None:
        if self._since_ms is None or self._own_ms is None or time_ms - self._own_ms > self.gap_ms:
            self._since_ms = time_ms
            self._own_beats = 0
        self._own_beats += 1
        self._own_ms = time_ms
        # a member lost for long is forgotten: whoever asks again starts a new count, to the same end
        horizon = time_ms - 20 * self.ttl_ms
        for known in (self._heard, self._gone):
            for member_id in [member_id for member_id, at in known.items() if at < horizon]:
                del known[member_id]

    def withdraw(self, member_id: str, time_ms: int) -> None:
        """Another sign of life than a beat (a newer record of this member): the silence starts again."""
        if member_id not in self._gone:
            self._heard[member_id] = max(time_ms, self._heard.get(member_id, 0))

    def is_lost(self, member_id: str) -> bool:
        """Judge ``member_id`` as of the last own beat. Asking about a member never heard starts its count."""
        if member_id in self._gone:
            return True
        if member_id == self.own_id or self._own_ms is None or self._since_ms is None:
            return False
        heard = self._heard.setdefault(member_id, self._own_ms)
        return self._own_ms - max(heard, self._since_ms) > self.ttl_ms

    def alive(self) -> list[str]:
        """The members heard and not lost."""
        return [member_id for member_id in list(self._heard) if not self.is_lost(member_id)]
