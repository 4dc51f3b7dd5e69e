"""Numbers of the SDK, with their units."""

from __future__ import annotations

from enum import Enum

DEFAULT_BASE_URL = "http://localhost:8000"
API_KEY_VARIABLE = "SHARPZO_API_KEY"  # of the environment; used if a client is given no key
DEFAULT_TIMEOUT = 60.0  # seconds without a byte, and for a connection from the pool
CONNECT_TIMEOUT = 5.0  # seconds
STREAM_TIMEOUT = 60.0  # seconds without a byte; the service sends a keep-alive every 15 s
DEFAULT_MAX_RETRIES = 3
INITIAL_BACKOFF = 0.5  # seconds
MAX_BACKOFF = 8.0  # seconds
MAX_RETRY_AFTER = 120.0  # seconds; a service that asks for more is not waited for
DEFAULT_POLL = 1.0  # seconds between two looks at a job or dataset
DEFAULT_DATASET_TIMEOUT = 1800.0  # seconds
MAX_STREAM_BREAKS = 8  # failed connections in a row, about 40 s
PAGE_SIZE = 100  # items
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_BATCH_IMAGES = 64  # images in one classify request; the service takes no more
MAX_BATCH_BYTES = 32 << 20  # after so many bytes of images a request is full
DEFAULT_TOP_K = 5  # labels per image


class Anything(Enum):
    """What an argument is if it was not given, where None means something."""

    ANYTHING = "anything"


ANYTHING = Anything.ANYTHING
