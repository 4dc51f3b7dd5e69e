"""Where the artifact store keeps checkpoints: below the job, in one folder per claim.

A worker writes to the folder that is named after its lease, and then names the folder in the job's
row. So one that was taken for dead and goes on spoils nothing: its row is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharpzo_core.errors import NotFound
from sharpzo_engine.search.checkpoint import CURRENT, PREVIOUS

if TYPE_CHECKING:
    from sharpzo_core.records.jobs import Job
    from sharpzo_core.storage.artifact_store import ArtifactStore

#: Names that the engine gives.
FILES = (CURRENT, PREVIOUS)


def checkpoint_prefix(job_id: str, folder: str | None = None) -> str:
    """Key prefix of one folder of checkpoints, or of all of a job's."""
    return f"jobs/{job_id}/checkpoint" + (f"/{folder}" if folder else "")


def copy_checkpoint(artifacts: ArtifactStore, source: Job, job_id: str) -> None:
    """Give the job `job_id` a copy of the checkpoint that `source` has.

    Raises:
        NotFound: it has none, or it is being replaced at this moment.
        StorageFull, StorageUnavailable: the store could not.
    """
    if source.checkpoint is None:
        raise NotFound("checkpoint", source.id)
    folder = source.checkpoint.folder
    copied = [
        _copy(
            artifacts,
            f"{checkpoint_prefix(source.id, folder)}/{name}",
            f"{checkpoint_prefix(job_id, folder)}/{name}",
        )
        for name in FILES
    ]
    if not any(copied):
        raise NotFound("checkpoint", source.id)


def _copy(artifacts: ArtifactStore, key: str, target: str) -> bool:
    try:
        data = artifacts.get_bytes(key)
    except NotFound:
        return False
    artifacts.put_bytes(target, data)
    return True
