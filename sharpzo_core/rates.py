"""Rates of requests as operators write them: `600/minute`, `5/second`; a number is per minute."""

import re
from functools import lru_cache

import limits

NO_LIMIT = "none"
RATE_PATTERN = r"^[1-9][0-9]{0,8}(/(second|minute|hour|day))?$"

_RATE = re.compile(RATE_PATTERN)


@lru_cache(256)
def parse_rate(text: str) -> limits.RateLimitItem:
    """Raises ValueError if the text is not a rate."""
    return limits.parse(write_rate(text))


def write_rate(text: str) -> str:
    """The same rate with its unit.

    Raises:
        ValueError: it is not a rate.
    """
    if _RATE.fullmatch(text) is None:
        raise ValueError("give a rate such as 600/minute or 10/second")
    return text if "/" in text else f"{text}/minute"
