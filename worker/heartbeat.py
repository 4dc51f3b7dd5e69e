"""Keeping a lease alive while a step takes its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from sharpzo_core.errors import LeaseLost
from sharpzo_core.periodic import Periodic
from sharpzo_core.records.jobs import JobStatus, Lease
from sharpzo_engine.errors import TuningInterrupted

if TYPE_CHECKING:
    from sharpzo_core.stores.job_leases import JobLeases


class Pulse:
    """Renews a lease from a small thread, and remembers what it learned about the job.

    A database that is away is no reason to stop: the run goes on, and whether the lease still holds
    is seen once the database is back.
    """

    def __init__(self, leases: JobLeases, lease: Lease, seconds: float) -> None:
        self._leases = leases
        self._lease = lease
        self._status = JobStatus.RUNNING
        self._lost = False
        self._thread = Periodic("lease renewal", seconds, self._renew)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.stop()

    def _renew(self) -> None:
        try:
            self.note(self._leases.renew(self._lease))
        except LeaseLost:
            self._lost = True

    def note(self, status: JobStatus) -> None:
        """Remember the job's status as another write has just found it."""
        self._status = status

    def check(self) -> None:
        """Return if the job is still to be run here.

        Raises:
            LeaseLost: another worker owns it.
            TuningInterrupted: it was asked to stop, or to be put down.
        """
        if self._lost:
            raise LeaseLost
        if self._status is not JobStatus.RUNNING:
            raise TuningInterrupted
