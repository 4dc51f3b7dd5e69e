"""Checkpoints of one claim: from the engine's folder into the artifact store and the job's row."""

import errno
import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sharpzo_core.errors import NotFound, StorageFull, StorageUnavailable
from sharpzo_core.records.checkpoints import FILES, checkpoint_prefix
from sharpzo_core.records.jobs import CheckpointRef, EventType, Job, Lease
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.job_leases import JobLeases
from sharpzo_core.stores.job_rows import NewEvent
from sharpzo_engine.files import write_atomically
from sharpzo_engine.search.checkpoint import CURRENT, CheckpointEvent

MAX_FAILURES = 10  # checkpoints in a row that may fail before the job does
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger(__name__)


class ClaimFolder:
    """Where the engine writes the checkpoints of one claim.

    In a local artifact store they stay there; otherwise they are uploaded from there.
    """

    def __init__(self, artifacts: ArtifactStore, cache_dir: Path, job: Job, lease: Lease) -> None:
        self._artifacts = artifacts
        self._job = job
        self.name = lease.token
        self._prefix = checkpoint_prefix(job.id, self.name)
        local = artifacts.local_path(self._prefix)
        self._remote = local is None
        self.path = local or cache_dir / self._prefix

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._remote:  # its checkpoints have been uploaded
            shutil.rmtree(self.path, ignore_errors=True)

    def fetch(self) -> bool:
        """Download the checkpoint that the job's row names; False if its files are gone."""
        if self._job.checkpoint is None:
            return True
        prefix = checkpoint_prefix(self._job.id, self._job.checkpoint.folder)
        fetched = [self._fetch(f"{prefix}/{name}", name) for name in FILES]
        return any(fetched)

    def _fetch(self, key: str, name: str) -> bool:
        try:
            data = self._artifacts.get_bytes(key)
        except NotFound:
            return False
        write_atomically(self.path / name, data)
        return True

    def store(self) -> None:
        """Make the newest checkpoint durable in the store.

        Raises:
            StorageFull, StorageUnavailable: the store did not take it.
        """
        if self._remote:
            self._artifacts.put_file(f"{self._prefix}/{CURRENT}", self.path / CURRENT)

    def drop_former(self) -> None:
        """Delete the checkpoint that this claim began with; the row names a newer one by now."""
        if self._job.checkpoint is None:
            return
        try:
            self._artifacts.delete_prefix(
                checkpoint_prefix(self._job.id, self._job.checkpoint.folder)
            )
        except (StorageFull, StorageUnavailable):  # it is deleted with the job
            logger.warning(
                "job %s: a previous checkpoint was not deleted",
                self._job.id,
                extra={"action": "files_kept"},
            )


class CheckpointKeeper:
    """The engine's `on_checkpoint` of one claim: keeps the job's row and its events up to date."""

    def __init__(self, folder: ClaimFolder, lease: Lease, leases: JobLeases) -> None:
        self._folder = folder
        self._lease = lease
        self._leases = leases
        self._failures = 0
        self._is_first = True

    def begin(self) -> None:
        """Fetch the checkpoint that the job resumes from.

        Raises:
            LeaseLost: another worker owns the job.
            StorageUnavailable: the store is away.
        """
        if not self._folder.fetch():
            self._warn(
                EventType.CHECKPOINT_CORRUPT,
                "the checkpoint is missing; the run starts from the beginning",
            )

    def __call__(self, event: CheckpointEvent) -> None:
        """Record what became of a checkpoint.

        Raises:
            LeaseLost: another worker owns the job.
            StorageFull, StorageUnavailable: too many could not be written.
        """
        if event.kind == "saved":
            self._saved(event.step)
        elif event.kind == "resumed":
            message, data = f"resumed after step {event.step}", {"step": event.step}
            resumed = NewEvent(EventType.RESUMED, message, data=data)
            record_event(self._leases, self._lease, resumed)
        elif event.kind == "rejected":
            self._warn(EventType.CHECKPOINT_CORRUPT, f"a checkpoint is not used: {event.error}")
        else:
            self._failed(event.error)

    def _saved(self, step: int) -> None:
        try:
            self._folder.store()
        except (StorageFull, StorageUnavailable) as error:
            self._failed(error)
            return
        self._failures = 0
        # Until the row names the new checkpoint it names the previous one, whose files are kept.
        if record_checkpoint(self._leases, self._lease, self._folder.name, step) and self._is_first:
            self._is_first = False
            self._folder.drop_former()

    def _failed(self, error: Exception | None) -> None:
        self._failures += 1
        full = isinstance(error, StorageFull) or getattr(error, "errno", None) in _FULL
        why = "no space is left" if full else "the storage failed"
        self._warn(EventType.CHECKPOINT_FAILED, f"a checkpoint could not be written: {why}")
        if self._failures >= MAX_FAILURES:
            message = f"{self._failures} checkpoints in a row could not be written: {why}"
            raise StorageFull(message) if full else StorageUnavailable(message)

    def _warn(self, kind: EventType, message: str) -> None:
        record_event(self._leases, self._lease, NewEvent(kind, message, "warning"))


def record_checkpoint(leases: JobLeases, lease: Lease, folder: str, step: int) -> bool:
    """Name a durable checkpoint in the job's row; False while the database is unavailable.

    Raises:
        LeaseLost: another worker owns the job.
    """
    try:
        leases.save_checkpoint(lease, CheckpointRef(folder, step, datetime.now(UTC)))
    except StorageUnavailable:
        logger.warning(
            "job %s: a checkpoint is not recorded yet (the database is unavailable)",
            lease.job_id,
            extra={"action": "checkpoint_waits"},
        )
        return False
    extra = {"action": "checkpoint_saved", "step": step}
    logger.debug("job %s has a checkpoint", lease.job_id, extra=extra)
    return True


def record_event(leases: JobLeases, lease: Lease, event: NewEvent) -> None:
    """Add an event to the log, and to the job's history unless the database is unavailable.

    Raises:
        LeaseLost: another worker owns the job.
    """
    extra = {"action": "checkpoint_event", "event": event.type, **event.data}
    logger.info("job %s: %s", lease.job_id, event.message, extra=extra)
    try:
        leases.add_event(lease, event)
    except StorageUnavailable:
        logger.warning(
            "job %s: an event is lost (the database is unavailable)",
            lease.job_id,
            extra={"action": "event_lost"},
        )
