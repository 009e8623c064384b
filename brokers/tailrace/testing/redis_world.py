"""Stores on one Redis, for tests of several "processes" in one (see `tailrace.testing.worlds`)."""

from __future__ import annotations

from tailrace.redis import RedisOptions
from tailrace.redis.broker import Redis, open_redis
from tailrace.testing.worlds import BrokerWorld


class RedisWorld(BrokerWorld):
    """Stores on the server at ``url``. Ids must be the test's own: the server may serve others."""

    def __init__(self, url: str, lease_ttl: float = 0.5, options: RedisOptions | None = None) -> None:
        super().__init__(lease_ttl)
        self.url = url
        self.options = options or RedisOptions()

    async def _open(self) -> Redis:
        return await open_redis(self.url, self.options)
