"""Finding jobs that need help: a lost worker, or a lost message.

Runs in every worker's supervisor; several may do so at once, because every change is conditional.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.logging import job_context
from sharpzo_core.records.jobs import JobStatus
from worker.processes import is_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sharpzo_core.broker.queue import JobQueue
    from sharpzo_core.records.jobs import Job
    from sharpzo_core.settings import Settings
    from sharpzo_core.stores.job_leases import HeldLease, JobLeases
    from sharpzo_core.stores.job_store import JobStore
    from sharpzo_core.stores.worker_store import WorkerStore

MAX_MESSAGES = 100  # messages of one sweep
LONGEST_PAUSE = 30.0  # longest pause between two messages for one waiting job
SILENT_DAYS = 1  # a worker without a heartbeat for so long is removed from the table

logger = logging.getLogger(__name__)


class LeaseWatch:
    """Which leases are dead, without trusting the wall clock alone.

    A living worker changes its lease every heartbeat. A lease is dead if it has not changed for its
    whole duration as measured here, or if it has expired by the wall clock and has not changed for
    a heartbeat and a half. So neither a clock that jumps nor one that is wrong takes a job from a
    living worker, or leaves one with a dead worker.
    """

    def __init__(self, lease_seconds: float, heartbeat_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._patience = 1.5 * heartbeat_seconds
        self._unchanged: dict[HeldLease, float] = {}  # -> monotonic time of the first sight

    def dead(self, held: Sequence[HeldLease], now: datetime, ticks: float) -> list[HeldLease]:
        """Check every lease; `ticks` is a monotonic time in seconds."""
        self._unchanged = {lease: self._unchanged.get(lease, ticks) for lease in held}
        return [
            lease
            for lease, first_seen in self._unchanged.items()
            if self._is_dead(ticks - first_seen, expired=lease.expires_at <= now)
        ]

    def _is_dead(self, unchanged: float, *, expired: bool) -> bool:
        return unchanged >= self._lease_seconds or (expired and unchanged >= self._patience)


@dataclass(frozen=True)
class MessageBackoff:
    """When a waiting job's message is sent again."""

    first_seconds: float

    def is_due(self, job: Job, now: datetime) -> bool:
        """Whether the last message must be lost by now."""
        pause = min(self.first_seconds * 2 ** min(job.rings, 8), LONGEST_PAUSE)
        age = now - (job.rung_at or job.created_at)
        # A negative age means that the clock was set back.
        return age >= timedelta(seconds=pause) or age < timedelta(0)


class Sweeper:
    def __init__(
        self,
        *,
        owner: str,
        settings: Settings,
        leases: JobLeases,
        jobs: JobStore,
        workers: WorkerStore,
        queue: JobQueue,
        clock: Clock = utc_now,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owner = owner
        self._slots = settings.slots
        self._notify_seconds = settings.sweep_seconds
        self._leases = leases
        self._jobs = jobs
        self._workers = workers
        self._queue = queue
        self._clock = clock
        self._ticks = ticks
        self._watch = LeaseWatch(settings.lease_seconds, settings.heartbeat_seconds)
        self._backoff = MessageBackoff(settings.sweep_seconds)

    def sweep(self) -> None:
        """Take jobs from lost workers, then send lost messages again."""
        held = self._leases.held()
        expired = set(self._watch.dead(held, self._clock(), self._ticks()))
        working = 0
        for lease in held:
            slot, _, supervisor = (lease.process or "").partition(" ")
            gone, mine = is_gone(slot), lease.owner == self._owner
            # A slot that ended while its supervisor lives died of its job. Only that supervisor
            # says so: others may look while the whole worker is being killed.
            if gone and mine:
                self._recover(lease, crashed=True)
            elif lease in expired or (gone and is_gone(supervisor)):
                self._recover(lease)
            else:
                working += mine
        # While all slots of this worker are busy, messages wait in the queue rightly.
        if working < self._slots:
            self._notify_again()
        self._workers.delete_silent(timedelta(days=SILENT_DAYS).total_seconds())

    def _recover(self, lease: HeldLease, *, crashed: bool = False) -> None:
        job = self._leases.recover(lease, crashed=crashed)
        if job is None:
            return
        with job_context(job):
            logger.warning(
                "job %s lost its worker %s and is now %s",
                job.id,
                lease.owner,
                job.status,
                extra={"action": "worker_lost", "lost_worker": lease.owner, "crashed": crashed},
            )
            if job.status is JobStatus.QUEUED:
                self._notify(job.id)

    def _notify_again(self) -> None:
        now, stop_at = self._clock(), self._ticks() + self._notify_seconds
        for job in self._leases.waiting(MAX_MESSAGES):
            if self._backoff.is_due(job, now) and not self._notify(job.id):
                return  # the broker is away
            if self._ticks() >= stop_at:
                return  # it is slow, and leases have to be checked

    def _notify(self, job_id: str) -> bool:
        sent = self._queue.notify(job_id)
        if sent:
            self._jobs.mark_notified(job_id)
        return sent
