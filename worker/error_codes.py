"""Errors of a job as a stable code and a short message for its owner."""

import errno

from sharpzo_core.errors import CoreError, NotFound, StorageFull
from sharpzo_engine.errors import EngineError

INTERNAL = "internal_error"
DATASET_MISSING = "dataset_missing"
OUT_OF_MEMORY = "out_of_memory"


def describe(error: Exception) -> tuple[str, str]:
    if isinstance(error, EngineError):
        return error.code, str(error)
    if isinstance(error, NotFound):
        return DATASET_MISSING, "the dataset's files are gone"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull.code, "the worker's disk is full"
    if _is_out_of_memory(error):
        return OUT_OF_MEMORY, "the worker ran out of memory"
    if isinstance(error, CoreError):
        return error.code, error.detail
    return INTERNAL, f"an unexpected {type(error).__name__}; the worker's log has the details"


def _is_out_of_memory(error: Exception) -> bool:
    """Torch's own errors are recognised by name: this module does not import torch."""
    named = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or named
