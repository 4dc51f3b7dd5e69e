"""Time as an argument, so that tests may choose it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

#: Returns the present moment, timezone-aware, in UTC.
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The system's wall clock."""
    return datetime.now(UTC)
