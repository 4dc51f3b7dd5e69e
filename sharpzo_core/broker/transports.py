"""The broker's client, made to survive a writer that is killed and a Redis that is away."""

import json
import logging
import time
import uuid
from pathlib import Path
from typing import Any

from celery.app.amqp import AMQP
from kombu import connection
from kombu.transport import filesystem, redis
from redis.exceptions import RedisError

from sharpzo_engine.files import write_atomically

logger = logging.getLogger(__name__)

LONGEST_WAIT = 0.5  # seconds; Celery asks for 2, and cannot interrupt it


class CarefulAMQP(AMQP):  # type: ignore[misc]
    """For `Celery(amqp=...)`: connections over the transports below."""

    class Connection(connection.Connection):
        """A connection to one of the two kinds of broker that the settings allow."""

        def get_transport_cls(self) -> type:
            usual: type = super().get_transport_cls()  # type: ignore[no-untyped-call]
            return FileTransport if issubclass(usual, filesystem.Transport) else RedisTransport


class _FileChannel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override] # noqa: ANN401
        """Add a message as a whole; kombu would show readers a file that is half written."""
        name = f"{time.time_ns()}_{uuid.uuid4()}.{queue}.msg"
        write_atomically(Path(self.data_folder_out, name), json.dumps(payload).encode(), sync=False)


class FileTransport(filesystem.Transport):
    """Messages as files in a folder."""

    Channel = _FileChannel

    def drain_events(self, connection: Any, timeout: float = LONGEST_WAIT, **_: Any) -> None:  # noqa: ANN401
        """Wait for a message, but not so long that SIGTERM has to wait as well.

        Raises:
            TimeoutError: there was none.
        """
        super().drain_events(connection, timeout=min(timeout, LONGEST_WAIT))  # type: ignore[no-untyped-call]


class _RedisQoS(redis.QoS):
    """Forgets a message that was dealt with although Redis did not take the acknowledgement.

    Otherwise it would count as unacknowledged for good: a worker that may hold one message would
    ask for no other, and never notice that its connection is dead. Redis delivers the message again
    some day, without effect.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except RedisError:
            logger.warning("Redis did not take an acknowledgement", extra={"action": "ack_failed"})
            self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]
        except RedisError:
            logger.warning("Redis did not take a message back", extra={"action": "ack_failed"})
            self._quick_ack(delivery_tag)


class _RedisChannel(redis.Channel):
    QoS = _RedisQoS


class RedisTransport(redis.Transport):
    Channel = _RedisChannel
