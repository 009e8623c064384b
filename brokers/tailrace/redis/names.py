"""The names of keys. Pure.

::

    P:{ID}:meta                      npm's
    P:{ID}:data  P:{ID}:data:TOKEN   npm's, with records of ours
    P:{ID}:tailrace                  the companion: which lives there were, and where
    P:{ID}:run                       the queued command of the stream
    P:tailrace:index                 the ids of the streams that are there
    P:tailrace:claims                the last claims, for those who wait for one
    P:tailrace:beats                 heartbeats
    P:tailrace:trial                 gone again: what a start tries its commands on
    P:tailrace:wake:…                wakes one process's blocked read
    P:tailrace:runs:HANDLER          commands; P:tailrace:dead those that could not be run
    P:tailrace:cancels:MEMBER        stream ids to cancel

P is the prefix. The braces are literal, a hash tag.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tailrace.model import Incarnation
from tailrace.redis.options import RedisOptions


@dataclass(frozen=True, slots=True)
class Names:
    prefix: str
    layout: str
    keep_ms: int

    @classmethod
    def of(cls, options: RedisOptions) -> Names:
        return cls(options.prefix, options.layout, int(options.retention * 1000))

    def token(self, incarnation: Incarnation) -> str:
        """npm's generation of a life that we begin; the layout of 0.3.15 has none."""
        return "" if self.layout == "0.3.15" else str(incarnation)

    def meta(self, stream_id: str) -> str:
        return f"{self.prefix}:{{{stream_id}}}:meta"

    def data(self, stream_id: str, token: str = "") -> str:
        base = f"{self.prefix}:{{{stream_id}}}:data"
        return f"{base}:{token}" if token else base

    def companion(self, stream_id: str) -> str:
        return f"{self.prefix}:{{{stream_id}}}:tailrace"

    def run(self, stream_id: str) -> str:
        return f"{self.prefix}:{{{stream_id}}}:run"

    @property
    def meta_pattern(self) -> str:
        """For SCAN: the metas of all streams."""
        return re.sub(r"([*?\[\]\\])", r"\\\1", self.prefix) + ":{*}:meta"

    def id_of_meta(self, key: str) -> str:
        return key[len(self.prefix) + 2 : -len("}:meta")]

    @property
    def index(self) -> str:
        return f"{self.prefix}:tailrace:index"

    @property
    def claims(self) -> str:
        return f"{self.prefix}:tailrace:claims"

    @property
    def beats(self) -> str:
        return f"{self.prefix}:tailrace:beats"

    @property
    def dead(self) -> str:
        return f"{self.prefix}:tailrace:dead"

    @property
    def trial(self) -> str:
        return f"{self.prefix}:tailrace:trial"

    def runs(self, handler: str) -> str:
        return f"{self.prefix}:tailrace:runs:{handler}"

    def cancels(self, member_id: str) -> str:
        return f"{self.prefix}:tailrace:cancels:{member_id}"
