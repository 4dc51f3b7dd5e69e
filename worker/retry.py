"""Waiting for a storage that is away, for what is worth a long wait."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from sharpzo_core.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

TRIES = 60
PAUSE_SECONDS = 5.0

logger = logging.getLogger(__name__)


def patiently(
    action: Callable[[], T],
    sleep: Callable[[float], None],
    check: Callable[[], None] = lambda: None,
) -> T:
    """Do it, waiting for a storage that is away; `check` is called after every pause and may raise.

    Raises:
        StorageUnavailable: it stayed away.
    """
    for _ in range(TRIES):
        try:
            return action()
        except StorageUnavailable:
            logger.warning(
                "the storage is away; trying again", exc_info=True, extra={"action": "storage_away"}
            )
            sleep(PAUSE_SECONDS)
            check()
    return action()
