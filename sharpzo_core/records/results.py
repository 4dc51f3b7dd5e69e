"""Where the artifact store keeps what a job that applies a prompt has made.

Parts (embeddings of a few hundred images each) are shared among all claims of the job: any worker
goes on where another has stopped. Results go to a folder of the claim that made them, which the
job's row names once it has ended. So a worker that was taken for dead overwrites nobody's.
"""

from __future__ import annotations

from typing import Literal

#: What the checkpoint of such a job is called in its row.
PARTS = "parts"
PART_IMAGES = 256  # images of one part; another number makes parts that are not interchangeable

ResultForm = Literal["jsonl", "csv"]
ReportForm = Literal["html", "json"]


def parts_prefix(job_id: str) -> str:
    """What the keys of all parts of a job begin with."""
    return f"jobs/{job_id}/{PARTS}"


def part_key(job_id: str, number: int) -> str:
    """Where part `number` is; the first is 0."""
    return f"{parts_prefix(job_id)}/{number:06d}.safetensors"


def results_prefix(job_id: str, folder: str | None = None) -> str:
    """What the keys of the results of one claim begin with, or of those of all claims."""
    return f"jobs/{job_id}/results" + (f"/{folder}" if folder else "")


def results_key(job_id: str, folder: str, form: ResultForm) -> str:
    """Where the lines of a classification are, one per image."""
    return f"{results_prefix(job_id, folder)}/images.{form}"


def evaluation_key(job_id: str, folder: str, form: ReportForm) -> str:
    """Where the report of an evaluation is."""
    return f"{results_prefix(job_id, folder)}/report.{form}"
