"""API keys: their format, their scopes, and what is stored of them.

A key is `szo_<8 characters>_<secret>`. The first two parts are its prefix, which is shown in lists
and finds its row. The secret ends with a checksum, so that mistyped keys and texts that only look
like keys are recognised without a database; it proves nothing else.
"""

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sharpzo_core.ids import ALPHABET

BRAND = "szo"
ID_LENGTH = 8
SECRET_LENGTH = 52  # 260 bits
CHECKSUM_LENGTH = 7  # 35 bits for the 32 of a CRC
MAX_KEY = len(BRAND) + ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH + 2  # characters
#: A whole key anywhere in a text.
KEY_PATTERN = (
    rf"{BRAND}_[{ALPHABET}]{{{ID_LENGTH}}}_[{ALPHABET}]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
)

_KEY = re.compile(KEY_PATTERN)
_PREFIX = re.compile(rf"{BRAND}_[{ALPHABET}]{{{ID_LENGTH}}}")


class Scope(StrEnum):
    """What a key may do, within its tenant."""

    JOBS = "jobs"  #: Datasets, jobs, evaluations and batches
    PROMPTS = "prompts"  #: Prompts, their files, aliases and pins
    INFER = "infer"  #: Classification
    ENCODE = "encode"  #: The encoders themselves: embeddings of images, texts and contexts
    METRICS = "metrics"  #: Only the metrics, for Prometheus
    ADMIN = "admin"  #: All of the above, keys and the audit log


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One row of the table `api_keys`: everything but the key itself."""

    id: str
    tenant: str
    name: str
    prefix: str
    sha256: str  #: Of the whole key
    scopes: frozenset[Scope]
    rate_limit: str | None = None  #: Such as `600/minute`; None: the service's own
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None  #: To the minute or so

    def is_valid(self, now: datetime) -> bool:
        expired = self.expires_at is not None and self.expires_at <= now
        return self.revoked_at is None and not expired


@dataclass(frozen=True)
class NewKey:
    """A new key; its text is not stored anywhere."""

    record: ApiKey
    text: str

    def __repr__(self) -> str:
        return f"NewKey({self.record.prefix})"  # the secret must not reach a log


def make_key() -> str:
    prefix = f"{BRAND}_{_random(ID_LENGTH)}"
    body = f"{prefix}_{_random(SECRET_LENGTH)}"
    return body + _checksum(body)


def is_key(text: str) -> bool:
    if len(text) != MAX_KEY or _KEY.fullmatch(text) is None:
        return False
    return text[-CHECKSUM_LENGTH:] == _checksum(text[:-CHECKSUM_LENGTH])


def holds_key(text: str) -> bool:
    return _KEY.search(text) is not None


def prefix_of(text: str) -> str:
    """The part of a key that lists show."""
    return text[: len(BRAND) + 1 + ID_LENGTH]


def is_prefix(text: str) -> bool:
    return _PREFIX.fullmatch(text) is not None


def digest_of(text: str) -> str:
    """The stored hash of a key. A plain hash is enough: nobody can guess 260 random bits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    return "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(CHECKSUM_LENGTH)))
