"""Retrying while the storage is unavailable, for actions that are worth a long wait."""

import logging
from collections.abc import Callable
from typing import TypeVar

from sharpzo_core.errors import StorageUnavailable

T = TypeVar("T")

TRIES = 60
PAUSE_SECONDS = 5.0

logger = logging.getLogger(__name__)


def with_retries(
    action: Callable[[], T],
    sleep: Callable[[float], None],
    check: Callable[[], None] = lambda: None,
) -> T:
    """Run the action, again and again while the storage is unavailable.

    `check` is called after every pause and may raise.

    Raises:
        StorageUnavailable: after all retries.
    """
    for _ in range(TRIES):
        try:
            return action()
        except StorageUnavailable:
            logger.warning(
                "the storage is unavailable; retrying",
                exc_info=True,
                extra={"action": "storage_away"},
            )
            sleep(PAUSE_SECONDS)
            check()
    return action()
