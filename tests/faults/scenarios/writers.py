"""Many processes that write to one SQLite file."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharpzo_core.database.engine import make_engine
from sharpzo_core.errors import CoreError
from sharpzo_core.records.jobs import NewJob
from sharpzo_core.settings import Settings
from sharpzo_core.stores.job_store import JobStore
from tests.helpers import Workplace

if TYPE_CHECKING:
    from pathlib import Path
    from threading import Barrier


@dataclass(frozen=True)
class Waits:
    """How long transactions took, in seconds, and how many failed."""

    seconds: list[float]
    errors: list[str]


def write(data_dir: Path, dataset_id: str, transactions: int, together: Barrier) -> Waits:
    """Accept jobs: every transaction reads the dataset's status, then writes a job and an event."""
    engine = make_engine(Settings.load(data_dir=data_dir))
    store = JobStore(engine)
    seconds, errors = [], []
    together.wait(60)
    for _ in range(transactions):
        started = time.monotonic()
        try:
            store.create(NewJob(dataset_id=dataset_id, backbone="tiny", config={}))
        except CoreError as error:
            errors.append(f"{type(error).__name__}: {error.__cause__}")
        seconds.append(time.monotonic() - started)
    engine.dispose()
    return Waits(seconds, errors)


def write_together(data_dir: Path, *, processes: int, transactions: int) -> Waits:
    """Have so many processes write at once; the waits of all, in ascending order."""
    place = Workplace(Settings.load(data_dir=data_dir))
    context = multiprocessing.get_context("spawn")
    try:
        dataset_id = place.add_dataset().id
        with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
            together = manager.Barrier(processes)
            writers = [
                pool.submit(write, data_dir, dataset_id, transactions, together)
                for _ in range(processes)
            ]
            waits = [writer.result() for writer in writers]
        stored = sum(place.jobs.count_by_status().values())
    finally:
        place.close()
    errors = [error for wait in waits for error in wait.errors]
    if stored + len(errors) != processes * transactions:
        errors.append(f"{stored} jobs are stored")
    return Waits(sorted(second for wait in waits for second in wait.seconds), errors)
