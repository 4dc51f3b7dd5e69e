"""The broker's client, made to survive what others may write into a queue.

Celery answers a bad task, but whatever is no message at all ends its worker: half a file, text that
is not JSON, JSON without the parts of a message. Here such a thing is dropped and logged. If one of
our own were among them it would do no harm, for workers find queued jobs without any message.
"""

from __future__ import annotations

import base64
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
MAX_BODY = 10_000  # characters; ours have about 200

#: What parsing raises; an error of base 64 is a ValueError too.
_NOT_JSON = (ValueError, RecursionError)


class CarefulAMQP(AMQP):  # type: ignore[misc]
    """For `Celery(amqp=...)`: connections over the transports below."""

    class Connection(connection.Connection):
        """A connection to one of the two kinds of broker that the settings allow."""

        def get_transport_cls(self) -> type:
            """The transport of the URL's scheme."""
            usual: type = super().get_transport_cls()  # type: ignore[no-untyped-call]
            return FileTransport if issubclass(usual, filesystem.Transport) else RedisTransport


class _FileChannel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override] # noqa: ANN401
        """Add a message as a whole; the usual way shows readers a file that is half written."""
        name = f"{time.time_ns()}_{uuid.uuid4()}.{queue}.msg"
        write_atomically(Path(self.data_folder_out, name), json.dumps(payload).encode(), sync=False)

    def _get(self, queue: str, timeout: float | None = None) -> Any:  # noqa: ANN401, ARG002
        while True:
            try:
                return super()._get(queue)  # type: ignore[no-untyped-call]
            except _NOT_JSON:  # the file is gone by now
                _drop("not JSON")


class FileTransport(filesystem.Transport):
    """Messages as files in a folder."""

    Channel = _FileChannel

    def drain_events(self, connection: Any, timeout: float = LONGEST_WAIT, **_: Any) -> None:  # noqa: ANN401
        """Wait for a message, but for so long only that a worker soon hears that it is to end.

        Raises:
            TimeoutError: there was none.
        """
        super().drain_events(connection, timeout=min(timeout, LONGEST_WAIT))  # type: ignore[no-untyped-call]

    def _deliver(self, message: object, queue: str) -> None:
        if is_message(message):
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
        else:
            _drop("not a message")


class _RedisQoS(redis.QoS):
    """Forgets a message that was dealt with although Redis does not hear of it.

    Else it would count as unacknowledged for ever, a worker that may hold one would ask for no
    other, and never notice that its connection is dead. Redis delivers it again some day, to no
    effect.
    """

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge."""
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except RedisError:
            logger.warning("Redis did not take an acknowledgement", extra={"action": "ack_failed"})
            self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back, or drop it."""
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]
        except RedisError:
            logger.warning("Redis did not take a message back", extra={"action": "ack_failed"})
            self._quick_ack(delivery_tag)


class _RedisChannel(redis.Channel):
    QoS = _RedisQoS

    def _brpop_read(self, **options: Any) -> Any:  # noqa: ANN401
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except _NOT_JSON:  # Redis has removed it from the list
            _drop("not JSON")
            return True


class RedisTransport(redis.Transport):
    """Messages in a list of Redis."""

    Channel = _RedisChannel

    def _deliver(self, message: object, queue: str) -> None:
        if is_message(message):
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
        else:
            _drop("not a message")


def is_message(message: object) -> bool:
    """Whether it has all the parts of a message of ours, in their types."""
    match message:
        case {
            "body": str(body),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {
                "task": str(),
                "id": str(),
                "eta": None,
                "expires": None,
                "timelimit": [None, None],
            },
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": str(),
                "delivery_info": {"exchange": str(), "routing_key": str()},
            },
        }:
            return len(body) <= MAX_BODY and _holds_arguments(body)
    return False


def _holds_arguments(body: str) -> bool:
    try:
        content = json.loads(base64.b64decode(body, validate=True))
    except _NOT_JSON:
        return False
    match content:
        case [list(), dict(), dict()]:
            return True
    return False


def _drop(reason: str) -> None:
    logger.warning("dropped from the queue: %s", reason, extra={"action": "bad_message"})
