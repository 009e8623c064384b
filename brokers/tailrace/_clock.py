"""Broker time, as an adapter's connection learns it."""

from __future__ import annotations


class Clock:
    """Broker time as far as this process knows: the newest of the broker's timestamps, in ms."""

    now_ms = 0

    def see(self, time_ms: int) -> int:
        """Take note of a timestamp, and give it back."""
        if time_ms > self.now_ms:
            self.now_ms = time_ms
        return time_ms
