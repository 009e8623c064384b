"""The leases that a store holds, and who writes under them.

Theory. A writer serves one lease, and is forgotten when it is through. A lease that nobody names is the one that this
store acquired last for the stream. One that was superseded is remembered a while longer, so that whoever still writes
without naming it is told why; the oldest of those go first.
"""

from __future__ import annotations

from tailrace.errors import StreamSuperseded
from tailrace.model import Incarnation, Lease
from tailrace.writer import Writer

MOST_FENCED = 1024  # superseded leases that are remembered


class Held:
    """Writers by the incarnation and epoch of their lease, leases by stream."""

    def __init__(self) -> None:
        self._writers: dict[tuple[Incarnation, int], Writer] = {}
        self._leases: dict[str, Lease] = {}
        self._fenced: dict[str, Lease] = {}

    def __len__(self) -> int:
        """Writers and leases that are neither through nor superseded."""
        return len(self._writers) + len(self._leases) - len(self._fenced)

    def writers(self) -> list[Writer]:
        """All that are not through."""
        return list(self._writers.values())

    def writer(self, stream_id: str, lease: Lease | None) -> Writer | None:
        """Who writes under ``lease`` (None: under the one that is held), if somebody does."""
        held = lease or self._leases.get(stream_id)
        writer = self._writers.get((held.incarnation, held.epoch)) if held is not None else None
        return writer if writer is not None and writer.lease.stream_id == stream_id else None

    def lease(self, stream_id: str) -> Lease | None:
        """The lease that this store acquired."""
        return self._leases.get(stream_id)

    def acquired(self, writer: Writer) -> None:
        """``writer`` serves a lease that this store acquired."""
        self._leases[writer.lease.stream_id] = writer.lease
        self._fenced.pop(writer.lease.stream_id, None)  # what went before it is of no interest any more
        self.serve(writer)

    def serve(self, writer: Writer) -> None:
        """``writer`` serves its lease, whoever acquired it."""
        self._writers[writer.lease.incarnation, writer.lease.epoch] = writer

    def release(self, writer: Writer) -> None:
        """``writer`` is through."""
        self._writers.pop((writer.lease.incarnation, writer.lease.epoch), None)
        stream_id = writer.lease.stream_id
        if self._leases.get(stream_id) != writer.lease:
            return
        if not isinstance(writer.failure, StreamSuperseded):
            del self._leases[stream_id]
            self._fenced.pop(stream_id, None)
            return
        self._fenced[stream_id] = writer.lease
        if len(self._fenced) > MOST_FENCED:
            oldest = next(iter(self._fenced))
            del self._fenced[oldest], self._leases[oldest]
