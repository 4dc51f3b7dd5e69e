"""Rates of requests as operators write them: `600/minute`, `5/second`, `1000 per 2 hours`."""

from __future__ import annotations

from functools import lru_cache

import limits

NO_LIMIT = "none"
LONGEST = 40  # characters
LARGEST = 10**9  # requests


@lru_cache(256)
def parse_rate(text: str) -> limits.RateLimitItem:
    """What the text says; a number alone is per minute.

    Raises:
        ValueError: it is no rate.
    """
    text = text.strip()
    try:
        if len(text) > LONGEST:
            raise ValueError
        (rate,) = limits.parse_many(f"{text}/minute" if text.isdecimal() else text)
    except ValueError:
        raise ValueError("give a rate such as 600/minute or 10/second") from None
    if not 1 <= rate.amount <= LARGEST or rate.get_expiry() < 1:
        raise ValueError(f"give from 1 to {LARGEST} requests")
    return rate


def write_rate(text: str) -> str:
    """The same rate in the one form that is stored.

    Raises:
        ValueError: it is no rate.
    """
    rate = parse_rate(text)
    multiples = "" if rate.multiples == 1 else f"{rate.multiples} "
    return f"{rate.amount}/{multiples}{rate.GRANULARITY.name}"
