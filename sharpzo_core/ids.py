"""Identifiers: a type prefix and 26 lowercase characters that sort by creation time.

The 26 characters are Crockford's base 32 of 48 bits of milliseconds and 80 random bits (the layout
of a ULID).
"""

import re
import secrets
import time
from enum import StrEnum

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 26
_RANDOM_BITS = 80
_BODY = re.compile(rf"[{ALPHABET}]{{{_LENGTH}}}")


class Prefix(StrEnum):
    DATASET = "ds"  #: A dataset
    JOB = "job"  #: A tuning job
    PROMPT = "prm"  #: One version of a tuned prompt
    WORKER = "wrk"  #: A worker process
    KEY = "key"  #: An API key
    AUDIT = "aud"  #: An entry of the audit log


def new_id(prefix: Prefix) -> str:
    """A fresh identifier, such as `job_01jdc3x0e8t5v6w7y9z2a4b6c8`."""
    number = time.time_ns() // 1_000_000 << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    characters = [ALPHABET[number >> 5 * place & 31] for place in reversed(range(_LENGTH))]
    return f"{prefix}_{''.join(characters)}"


def id_pattern(prefix: Prefix) -> str:
    """The pattern of such an identifier, for JSON schemas."""
    return f"^{prefix}_{_BODY.pattern}$"


def is_id(prefix: Prefix, text: str) -> bool:
    head, _, body = text.partition("_")
    return head == prefix and _BODY.fullmatch(body) is not None
