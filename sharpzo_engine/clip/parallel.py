"""Parallelism on a CPU: chunks of work run on threads, each operation on a single thread.

Torch splits every operation over all cores and waits for the slowest. The operations here are
small, so one core that is busy with something else delays all of them, up to a hundredfold. With
one thread per chunk, a busy core only delays its own chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from threading import Barrier
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Just below the largest block (32 MiB) that moves glibc's thresholds when it is freed.
_LARGEST_ADAPTIVE_BLOCK = 2**25 - 2**16


def map_chunks(
    function: Callable[[Item], Result], chunks: Iterable[Item], device: torch.device
) -> Iterator[Result]:
    """`map`, on several threads if `device` is the CPU; results are in order.

    Uses as many threads as torch (`torch.set_num_threads`, OMP_NUM_THREADS).
    """
    _keep_freed_memory()
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield from map(function, chunks)
        return
    with _operations_on_one_thread():
        yield from _pool(threads).map(function, chunks)


def even_slices(count: int, largest: int, device: torch.device) -> list[slice]:
    """Cut `count` items into equal slices of at most `largest`, equally many per thread."""
    workers = torch.get_num_threads() if device.type == "cpu" else 1
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


@contextmanager
def _operations_on_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Start all threads, because torch's number of threads is set per thread."""
    pool, started = (
        ThreadPoolExecutor(threads, thread_name_prefix="sharpzo-chunk"),
        Barrier(threads),
    )

    def start(_: int) -> None:
        torch.set_num_threads(1)
        started.wait()

    list(pool.map(start, range(threads)))
    return pool


@cache
def _keep_freed_memory() -> None:
    """Let the C library reuse the memory of activations rather than return it to the kernel.

    Freeing one large block raises glibc's thresholds (mallopt(3): M_MMAP_THRESHOLD). Without this,
    every layer's buffers are mapped and page-faulted again, which costs as much as its products.
    """
    torch.empty(_LARGEST_ADAPTIVE_BLOCK, dtype=torch.uint8)
