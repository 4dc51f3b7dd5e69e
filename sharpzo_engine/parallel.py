"""Parallelism on a processor: whole chunks of work on threads, each operation on one.

Torch splits every single operation over all cores and waits for the slowest. The operations here
are small, and a core that something else borrows for a moment makes all of them wait. So chunks run
side by side instead, each single-threaded: results then do not depend on the number of cores, and a
busy machine costs its share, not a hundredfold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_chunks(
    function: Callable[[Item], Result], chunks: Iterable[Item], device: torch.device
) -> Iterator[Result]:
    """`map`, over threads where `device` is the processor; results in order.

    As many threads as torch is set to use (`torch.set_num_threads`, OMP_NUM_THREADS).
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield from map(function, chunks)
        return
    with _operations_on_one_thread():
        yield from _pool(threads).map(function, chunks)


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
    return ThreadPoolExecutor(threads, thread_name_prefix="sharpzo-chunk")
