"""Parallelism on a CPU: chunks of work run on threads, each operation on a single thread.

Torch and OpenBLAS split every operation over all cores and wait for the slowest. The operations
here are small, so one core that is busy with something else delays all of them, up to a
hundredfold. With one thread per chunk, a busy core only delays its own chunk.

Torch's own settings are changed only in processes that have loaded it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from threading import Barrier
from types import ModuleType
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Just below the largest block (32 MiB) that moves glibc's thresholds when it is freed.
_LARGEST_ADAPTIVE_BLOCK = 2**25 - 2**16


def threads() -> int:
    """How many threads work is spread over: torch's number, OMP_NUM_THREADS, or the cores."""
    if torch := _torch():
        return int(torch.get_num_threads())
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or _cores()


def map_chunks(
    function: Callable[[Item], Result], chunks: Iterable[Item], on_cpu: bool = True
) -> Iterator[Result]:
    """`map`, on several threads if the work is the CPU's; results are in order."""
    _keep_freed_memory()
    workers = threads()
    if not on_cpu or workers == 1:
        yield from map(function, chunks)
        return
    with _operations_on_one_thread():
        yield from _pool(workers).map(function, chunks)


def even_slices(count: int, largest: int, on_cpu: bool = True) -> list[slice]:
    """Cut `count` items into equal slices of at most `largest`, equally many per thread."""
    workers = threads() if on_cpu else 1
    rounds = -(-count // (largest * workers))
    slices = min(count, rounds * workers)
    bounds = [count * i // slices for i in range(slices + 1)] if count else [0]
    return [slice(*pair) for pair in pairwise(bounds)]


@contextmanager
def numpy_on_one_thread() -> Iterator[None]:
    """Limit numpy's OpenBLAS to the caller's thread.

    The matrices of the search are small. On a busy machine OpenBLAS's threads, which wait for each
    other by spinning, extend a product of 5 ms to 200 ms.
    """
    with _numpy_libraries().limit(limits=1):
        yield


def keep_numpy_on_one_thread() -> None:
    """Limit OpenBLAS permanently and in all threads: for processes with small numpy work."""
    _numpy_libraries().limit(limits=1)


@cache
def _numpy_libraries() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


def _torch() -> ModuleType | None:
    """Torch, if this process has loaded it."""
    return sys.modules.get("torch")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _operations_on_one_thread() -> Iterator[None]:
    torch, before = _torch(), threads()
    if torch:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(before)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Start all threads, because torch's number of threads is set per thread."""
    pool, started = (
        ThreadPoolExecutor(workers, thread_name_prefix="sharpzo-chunk"),
        Barrier(workers),
    )

    def start(_: int) -> None:
        if torch := _torch():
            torch.set_num_threads(1)
        started.wait()

    list(pool.map(start, range(workers)))
    return pool


@cache
def _keep_freed_memory() -> None:
    """Let the C library reuse the memory of activations rather than return it to the kernel.

    Freeing one large block raises glibc's thresholds (mallopt(3): M_MMAP_THRESHOLD). Without this,
    every layer's buffers are mapped and page-faulted again, which costs as much as its products.
    """
    np.empty(_LARGEST_ADAPTIVE_BLOCK, dtype=np.uint8)
