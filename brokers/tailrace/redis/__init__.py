"""Redis: streams, heartbeats and runs on Redis or Valkey 6.2 or newer, alone or with Sentinel, in the keys of npm
``assistant-stream``.

::

    from tailrace.redis.broker import open_redis

    broker = await open_redis("redis://127.0.0.1:6379")
    broker.log      tailrace.log.Log
    broker.beats    tailrace.log.Beats
    broker.runs     tailrace.contracts.RunQueue, and what workers need

What is here needs no client library: settings name the options whether or not it is installed.
"""

from __future__ import annotations

from tailrace.contracts import Capabilities
from tailrace.redis.options import RedisOptions

__all__ = ["CAPABILITIES", "RedisOptions"]

CAPABILITIES = Capabilities(shared=True, durable=True, exclusive=False)  # durable with an append-only file
