"""Whether the broker takes messages, asked by writing something."""

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
_SILENT = "does not answer"


class BrokerProbe:
    """Asks Redis; of the embedded broker, which is a folder, it asks the queue."""

    def __init__(self, settings: Settings, queue: JobQueue) -> None:
        self._queue = queue
        self._client = None if settings.embedded_broker else _client(settings.broker_url)

    def problem(self) -> str | None:
        """Why messages cannot be sent; None if they can."""
        if self._client is None:
            return _SILENT if self._queue.depth() is None else None
        try:
            # A write, because a Redis whose memory is full still answers every question.
            self._client.set(_KEY, "", ex=_KEY_SECONDS)
        except redis.ResponseError as error:
            return f"refuses to write: {error}"
        except (redis.RedisError, OSError):
            return _SILENT
        return None

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()


def _client(url: str) -> redis.Redis:
    limits = {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
    parts = urlsplit(url)
    if parts.scheme == _SOCKET_SCHEME:
        (database,) = parse_qs(parts.query).get("virtual_host", ["0"])
        return redis.Redis(unix_socket_path=parts.path, db=int(database), **limits)  # type: ignore[arg-type]
    return redis.Redis.from_url(url, **limits)
