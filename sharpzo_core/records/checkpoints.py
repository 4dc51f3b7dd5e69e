"""Where the artifact store keeps checkpoints: below the job, in one folder per claim.

A worker writes to the folder that is named after its lease, and then writes the folder's name to
the job's row. A worker that lost its lease but still runs does no damage: its row is refused.
"""

from sharpzo_engine.search.checkpoint import CURRENT, PREVIOUS

#: Names that the engine gives.
FILES = (CURRENT, PREVIOUS)


def checkpoint_prefix(job_id: str, folder: str | None = None) -> str:
    """Key prefix of one folder of checkpoints, or of all of a job's."""
    return f"jobs/{job_id}/checkpoint" + (f"/{folder}" if folder else "")
