"""Rate limits: requests per key, and wrong keys per address.

Counted in the broker's Redis if there is one, so that all API processes share the counts;
otherwise, and while Redis does not answer, in this process.
"""

import logging
import math
import time
from collections.abc import Callable

import redis
from limits import RateLimitItem
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.concurrency import run_in_threadpool

from service.auth.principal import Caller
from service.errors import Allowance, RateLimited
from sharpzo_core.rates import NO_LIMIT, parse_rate
from sharpzo_core.settings import Settings

ANSWER_SECONDS = 0.25  # how long a request waits for Redis
RETRY_SECONDS = 5.0  # until Redis is tried again after a failure

logger = logging.getLogger(__name__)


class RateLimits:
    """Counts on the event loop; Redis is queried in another thread."""

    def __init__(self, settings: Settings, ticks: Callable[[], float] = time.monotonic) -> None:
        self._per_key = settings.rate_limit
        self._failures = settings.auth_failure_limit
        self._ticks = ticks
        self._here = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = _shared(settings.broker_url)
        self._retry_at = -math.inf

    async def take(self, caller: Caller) -> Allowance | None:
        """Count a request of this caller's key; None if it has no limit.

        Raises:
            RateLimited: the limit is exceeded.
        """
        key = caller.key
        rate = NO_LIMIT if key is None else key.rate_limit or self._per_key
        if key is None or rate == NO_LIMIT:
            return None
        return await self._take(parse_rate(rate), "key", key.id)

    async def fail(self, address: str) -> None:
        """Count a wrong key from this address.

        Raises:
            RateLimited: the limit is exceeded.
        """
        if self._failures != NO_LIMIT:
            await self._take(parse_rate(self._failures), "address", address)

    async def _take(self, rate: RateLimitItem, kind: str, name: str) -> Allowance:
        if self._shared is not None and self._ticks() >= self._retry_at:
            try:
                return await run_in_threadpool(_take, self._shared, rate, kind, name)
            except (StorageError, redis.RedisError, OSError) as error:
                self._retry_at = self._ticks() + RETRY_SECONDS
                logger.warning(
                    "Redis does not answer, rate limits are counted in this process: %s",
                    error,
                    extra={"action": "rates_local"},
                )
        return _take(self._here, rate, kind, name)


def _take(
    counter: SlidingWindowCounterRateLimiter, rate: RateLimitItem, kind: str, name: str
) -> Allowance:
    allowed = counter.hit(rate, kind, name)
    stats = counter.get_window_stats(rate, kind, name)
    reset = max(1, math.ceil(stats.reset_time - time.time()))
    left = Allowance(rate.amount, rate.get_expiry(), stats.remaining if allowed else 0, reset)
    if not allowed:
        raise RateLimited(f"at most {rate} (wait, or ask for a higher limit)", left)
    return left


def _shared(broker_url: str) -> SlidingWindowCounterRateLimiter | None:
    if not broker_url:
        return None
    url = broker_url.replace("redis+socket://", "unix://", 1)
    pool = redis.ConnectionPool.from_url(
        url,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=None,
    )
    return SlidingWindowCounterRateLimiter(RedisStorage(url, connection_pool=pool))
