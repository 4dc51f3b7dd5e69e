"""Checks that the broker accepts messages, by writing to it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import redis

if TYPE_CHECKING:
    from sharpzo_core.broker.queue import JobQueue
    from sharpzo_core.settings import Settings

TIMEOUT_SECONDS = 2.0
_KEY = "sharpzo.probe"
_KEY_SECONDS = 60
_SOCKET_SCHEME = "redis+socket"  # as Celery writes the address of a socket
_NO_ANSWER = "does not answer"


class BrokerProbe:
    """Writes a key to Redis; reads the queue's depth if the broker is the embedded one."""

    def __init__(self, settings: Settings, queue: JobQueue) -> None:
        self._queue = queue
        self._client = None if settings.embedded_broker else _client(settings.broker_url)

    def problem(self) -> str | None:
        """Why messages cannot be sent, or None."""
        if self._client is None:
            return _NO_ANSWER if self._queue.depth() is None else None
        try:
            # A write, because a Redis whose memory is full still answers reads.
            self._client.set(_KEY, "", ex=_KEY_SECONDS)
        except redis.ResponseError as error:
            return f"rejects writes: {error}"
        except (redis.RedisError, OSError):
            return _NO_ANSWER
        return None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _client(url: str) -> redis.Redis:
    limits = {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
    parts = urlsplit(url)
    if parts.scheme == _SOCKET_SCHEME:
        (database,) = parse_qs(parts.query).get("virtual_host", ["0"])
        return redis.Redis(unix_socket_path=parts.path, db=int(database), **limits)  # type: ignore[arg-type]
    return redis.Redis.from_url(url, **limits)
