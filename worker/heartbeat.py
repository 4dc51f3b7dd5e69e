"""Extending a lease while a step takes long."""

from typing import Self

from sharpzo_core.errors import LeaseLost
from sharpzo_core.periodic import Periodic
from sharpzo_core.records.jobs import Job, JobStatus, Lease
from sharpzo_core.stores.job_leases import JobLeases
from sharpzo_engine.errors import FinishSearch, TuningInterrupted


class Heartbeat:
    """Extends a lease from its own thread, and remembers what the job is asked to do meanwhile.

    An unavailable database does not stop the run; whether the lease still holds is seen once the
    database is back.
    """

    def __init__(self, leases: JobLeases, lease: Lease, seconds: float) -> None:
        self._leases = leases
        self._lease = lease
        self._status = JobStatus.RUNNING
        self._finishing = False
        self._lost = False
        self._thread = Periodic("lease renewal", seconds, self._renew)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.stop()

    def _renew(self) -> None:
        try:
            self.observe(self._leases.renew(self._lease))
        except LeaseLost:
            self._lost = True

    def observe(self, job: Job) -> None:
        self._status, self._finishing = job.status, job.finishing

    def check(self) -> None:
        """Return if this worker is to continue the job.

        Raises:
            LeaseLost: another worker owns it.
            TuningInterrupted: it is to be cancelled or paused.
            FinishSearch: it is to end its search.
        """
        if self._lost:
            raise LeaseLost
        if self._status is not JobStatus.RUNNING:
            raise TuningInterrupted
        if self._finishing:
            raise FinishSearch
