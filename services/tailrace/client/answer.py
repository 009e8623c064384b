"""What both kinds of answer are, apart from their I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tailrace.client.following import Following, Position

if TYPE_CHECKING:
    from tailrace.client.decoding import Decoding


class BaseAnswer:
    """Where an answer stands, and what decodes it."""

    def __init__(self, following: Following, format: str | None) -> None:
        self._following, self._format = following, format
        self._decoded: Decoding | None = None

    @property
    def id(self) -> str:
        return self._following.stream_id

    @property
    def position(self) -> Position:
        """Behind the last byte that was handed out. Any process can resume there."""
        return self._following.position

    @property
    def reconnects(self) -> int:
        """How often it went on after its connection was lost."""
        return self._following.reconnects

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the stream's newest response; empty before the first one."""
        head = self._following.head
        return head.headers if head is not None else {}

    @property
    def _decoding(self) -> Decoding:
        if self._decoded is None:
            from tailrace.client.decoding import Decoding  # who reads bytes needs none of it

            self._decoded = Decoding(self._format)
        return self._decoded
