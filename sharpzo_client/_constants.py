"""Constants of the SDK, with their units."""

from __future__ import annotations

from enum import Enum

DEFAULT_BASE_URL = "http://localhost:8000"
API_KEY_VARIABLE = "SHARPZO_API_KEY"  # environment variable, read if a client is given no key
DEFAULT_TIMEOUT = 60.0  # seconds of inactivity, and to get a connection from the pool
CONNECT_TIMEOUT = 5.0  # seconds
STREAM_TIMEOUT = 60.0  # seconds of inactivity; the service sends a keep-alive every 15 s
DEFAULT_MAX_RETRIES = 3
INITIAL_BACKOFF = 0.5  # seconds
MAX_BACKOFF = 8.0  # seconds
MAX_RETRY_AFTER = 120.0  # seconds; a request with a longer Retry-After fails instead
DEFAULT_POLL = 1.0  # seconds between two requests for the state of a job or dataset
DEFAULT_DATASET_TIMEOUT = 1800.0  # seconds
MAX_STREAM_FAILURES = 8  # failed connections in a row, about 40 s
PAGE_SIZE = 100  # items
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_BATCH_IMAGES = 64  # images in one classify request: the service's limit
MAX_BATCH_BYTES = 32 << 20  # a request with this many bytes of images is full
DEFAULT_TOP_K = 5  # labels per image


class Unset(Enum):
    """The default of an argument for which None has a meaning."""

    UNSET = "unset"


UNSET = Unset.UNSET
