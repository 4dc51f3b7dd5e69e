"""Keys of what a job that applies a prompt writes to the artifact store.

Parts (embeddings of a few hundred images each) are shared among all claims of the job: any worker
continues where another stopped. Results go to a folder of the claim that wrote them, and the job's
row names that folder once the job has ended. So a worker that lost its lease overwrites no results.
"""

from typing import Literal

#: The checkpoint folder of such a job in its row.
PARTS = "parts"
PART_IMAGES = 256  # images of one part; parts of another size are not interchangeable

ResultForm = Literal["jsonl", "csv"]
ReportForm = Literal["html", "json"]


def parts_prefix(job_id: str) -> str:
    return f"jobs/{job_id}/{PARTS}"


def part_key(job_id: str, number: int) -> str:
    return f"{parts_prefix(job_id)}/{number:06d}.safetensors"


def results_prefix(job_id: str, folder: str | None = None) -> str:
    return f"jobs/{job_id}/results" + (f"/{folder}" if folder else "")


def results_key(job_id: str, folder: str, form: ResultForm) -> str:
    return f"{results_prefix(job_id, folder)}/images.{form}"


def evaluation_key(job_id: str, folder: str, form: ReportForm) -> str:
    return f"{results_prefix(job_id, folder)}/report.{form}"
