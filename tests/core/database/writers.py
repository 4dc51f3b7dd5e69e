"""One process that writes to a database again and again and says how long each write took."""

from __future__ import annotations

import time
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

from sharpzo_core.database.engine import make_engine
from sharpzo_core.ids import Prefix, new_id
from sharpzo_core.records.jobs import EventType, JobProgress, JobStep, NewJob, Phase
from sharpzo_core.settings import Settings
from sharpzo_core.stores.job_leases import JobLeases, lease_of
from sharpzo_core.stores.job_rows import NewEvent
from sharpzo_core.stores.job_store import JobStore


def processes() -> ForkServerContext:
    """Real processes that need not import everything again."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def write_many(data_dir: Path, dataset_id: str, times: int) -> list[float]:
    """Queue, claim and report a job of one's own; the seconds of every write."""
    engine = make_engine(Settings.load(data_dir=data_dir))
    leases = JobLeases(engine, lease_seconds=60, max_attempts=3)
    job = JobStore(engine).create(NewJob(dataset_id=dataset_id, backbone="tiny", config={}))
    claimed = leases.claim(job.id, new_id(Prefix.WORKER))
    assert claimed is not None
    lease = lease_of(claimed)
    seconds = []
    for number in range(1, times + 1):
        started = time.perf_counter()
        if number % 2:
            leases.save_progress(lease, _progress(number), {}, [_step(number)])
        else:
            leases.add_event(lease, NewEvent(EventType.RELEASED, f"write {number}"))
        seconds.append(time.perf_counter() - started)
    engine.dispose()
    return seconds


def _progress(step: int) -> JobProgress:
    return JobProgress(phase=Phase.STAGE1, step=step, total_steps=1000, forward_passes=step)


def _step(number: int) -> JobStep:
    return JobStep(
        step=number,
        phase=Phase.STAGE1,
        loss=1.0,
        val_loss=None,
        val_accuracy=None,
        sigma=None,
        sharpness=None,
        forward_passes=number,
        seconds=0.1,
    )
