"""Jobs that apply a prompt to a dataset: evaluations and classifications. Loads torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from sharpzo_core.backbones import serving
from sharpzo_core.errors import NotFound, StorageFull, StorageUnavailable
from sharpzo_core.records.jobs import Job, JobKind, JobStatus, Lease
from sharpzo_core.records.results import (
    ReportForm,
    ResultForm,
    evaluation_key,
    parts_prefix,
    results_key,
    results_prefix,
)
from sharpzo_core.storage.prompt_files import read_prompt_file
from sharpzo_core.submission.prompt_jobs import classes_of
from sharpzo_engine.clip.encoder import Encoder
from sharpzo_engine.errors import ArtifactError, BackboneMismatch, ImageError
from sharpzo_engine.prompts.artifact import TunedPrompt
from sharpzo_engine.prompts.classifier import PromptClassifier, top_predictions
from sharpzo_engine.prompts.embedding_shards import Part
from sharpzo_engine.prompts.evaluation import Tally
from sharpzo_engine.reports.evaluation_report import EvaluationReport
from worker.dataset_files import ListedImage
from worker.progress_writer import Reporter, finite_numbers
from worker.results import Answer, ResultWriter, scratch_file
from worker.retry import with_retries
from worker.shards import JobParts

if TYPE_CHECKING:
    from sharpzo_core.records.datasets import DatasetRecord
    from sharpzo_core.records.prompts import PromptRecord
    from worker.runner import RunnerDeps

Metrics = Mapping[str, float | None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Application:
    job: Job
    folder: str  #: of this claim's results
    dataset: DatasetRecord
    prompt: PromptRecord
    classifier: PromptClassifier
    zero_shot: PromptClassifier | None  #: the hand-written prompt, if it was asked for
    parts: JobParts
    deps: RunnerDeps

    def store(self, key: str, data: bytes) -> None:
        with_retries(lambda: self.deps.artifacts.put_bytes(key, data), self.deps.sleep)

    def store_file(self, key: str, path: Path) -> None:
        with_retries(lambda: self.deps.artifacts.put_file(key, path), self.deps.sleep)


def apply_prompt(job: Job, lease: Lease, report: Reporter, deps: RunnerDeps) -> Job:
    """Apply the job's prompt, store the results, and publish them in one transaction.

    Raises:
        TuningInterrupted: the job is to be released.
        LeaseLost: another worker owns it.
        EngineError, CoreError, OSError: it has failed.
    """
    record = with_retries(lambda: _prompt_record(job, deps), deps.sleep)
    tuned = TunedPrompt.load(
        with_retries(lambda: read_prompt_file(deps.artifacts, record), deps.sleep)
    )
    if job.config.get("calibrated"):
        tuned.require_temperature()  # before the work, not after it
    classifier = PromptClassifier(tuned, _backbone(tuned, deps))
    dataset = with_retries(
        lambda: deps.datasets.for_tenant(job.tenant).get(job.dataset_id), deps.sleep
    )
    parts = JobParts(job, dataset, classifier.backbone, lease=lease, report=report, deps=deps)
    parts.embed()
    if part := job.config.get("classes"):
        classifier = classifier.among(classes_of(dataset, part))
    compared = job.config["zero_shot"] and classifier.has_zero_shot
    zero_shot = classifier.zero_shot() if compared else None
    application = Application(job, lease.token, dataset, record, classifier, zero_shot, parts, deps)
    metrics = _CONCLUSIONS[job.kind](application)
    ended = with_retries(lambda: deps.leases.complete(lease, lease.token, metrics), deps.sleep)
    if ended.status is JobStatus.SUCCEEDED:
        extra = {"action": "results_published"}
        logger.info("job %s published its results", job.id, extra=extra)
    _tidy(ended, lease.token, deps)
    return ended


def _prompt_record(job: Job, deps: RunnerDeps) -> PromptRecord:
    try:
        return deps.prompts.for_tenant(job.tenant).get(job.prompt_id or "")
    except NotFound:
        raise ArtifactError("the prompt was deleted (apply another one)") from None


def _backbone(prompt: TunedPrompt, deps: RunnerDeps) -> Encoder:
    described = prompt.metadata["backbone"]
    for spec in serving(deps.settings.backbone_specs, described):
        backbone = deps.load_backbone(spec)
        if backbone.fingerprint == prompt.fingerprint:
            return backbone
    raise BackboneMismatch(
        f"none of the offered backbones has the weights {prompt.fingerprint[:12]} of "
        f"{described.get('name')}, which the prompt was tuned on"
    )


def _tidy(job: Job, folder: str, deps: RunnerDeps) -> None:
    """Delete files that are no longer needed; the housekeeper deletes what remains."""
    others = results_prefix(job.id)
    try:
        if job.status is not JobStatus.SUCCEEDED:  # it may be resumed, and then needs its parts
            deps.artifacts.delete_prefix(results_prefix(job.id, folder))
            return
        deps.artifacts.delete_prefix(parts_prefix(job.id))
        for name in deps.artifacts.names(others):
            if name != folder:
                deps.artifacts.delete_prefix(f"{others}/{name}")
    except (StorageFull, StorageUnavailable):
        logger.warning(
            "job %s: unneeded files were not deleted", job.id, extra={"action": "files_kept"}
        )


# Conclusions


def _evaluate(application: Application) -> Metrics:
    """Measure, and store the report as JSON and as a page."""
    classifier, zero_shot = application.classifier, application.zero_shot
    names = classifier.prompt.class_names
    index = {name: place for place, name in enumerate(names)}
    tuned, plain = Tally(names, classifier.prompt.temperature), Tally(names)
    errors: list[tuple[str, ImageError]] = []
    for images, part in application.parts:
        labels = np.array([index[images[row].label or ""] for row in part.rows], np.int64)
        tuned.add(classifier.logits(part.embeddings), labels)
        if zero_shot is not None:
            plain.add(zero_shot.logits(part.embeddings), labels)
        errors += [(images[row].name, error) for row, error in part.errors.items()]
    report = EvaluationReport(
        assessment=tuned.result(),
        zero_shot=None if zero_shot is None else plain.result(),
        split=application.job.config["split"],
        prompt=classifier.prompt,
        errors=tuple(errors),
        labels=_labels(application),
    )
    _store_report(report, application)
    return finite_numbers(report.figures())


def _labels(application: Application) -> dict[str, str | None]:
    job, prompt, dataset = application.job, application.prompt, application.dataset
    return {
        "job": job.id,
        "job_name": job.name,
        "prompt": f"{prompt.name}:{prompt.version}",
        "prompt_id": prompt.id,
        "prompt_sha256": prompt.sha256,
        "dataset_name": dataset.name,
        "dataset": dataset.id,
        "dataset_sha256": dataset.sha256,
    }


def _store_report(report: EvaluationReport, application: Application) -> None:
    """Store the JSON and the page; a page that cannot be drawn does not fail the job."""
    files: dict[ReportForm, bytes] = {"json": report.to_json_bytes()}
    try:
        files["html"] = report.to_html().encode()
    except Exception:  # a plotting library may raise anything
        job_id = application.job.id
        logger.exception("job %s: no report page", job_id, extra={"action": "report_failed"})
    for form, data in files.items():
        application.store(evaluation_key(application.job.id, application.folder, form), data)


def _classify(application: Application) -> Metrics:
    job, cache = application.job, application.deps.settings.cache_dir
    count = min(job.config["top_k"], len(application.classifier.prompt.class_names))
    errors = 0
    with scratch_file(cache) as lines, scratch_file(cache) as table:
        writer = ResultWriter(lines, table, count, zero_shot=application.zero_shot is not None)
        for images, part in application.parts:
            for image, answer in zip(images, _answers(application, images, part), strict=True):
                writer.write(image, answer)
                errors += answer.error is not None
        files: dict[ResultForm, IO[str]] = {"jsonl": lines, "csv": table}
        for form, file in files.items():
            file.flush()
            key = results_key(job.id, application.folder, form)
            application.store_file(key, Path(file.name))
    return {"images": len(application.parts.images), "errors": errors}


def _answers(
    application: Application, images: Sequence[ListedImage], part: Part
) -> Iterator[Answer]:
    classifier, config = application.classifier, application.job.config
    names, count = classifier.prompt.class_names, config["top_k"]
    temperature = (classifier.prompt.temperature if config["calibrated"] else None) or 1.0
    tuned = classifier.probabilities(part.embeddings, temperature)
    zero_shot = application.zero_shot
    plain = None if zero_shot is None else zero_shot.probabilities(part.embeddings)
    places = {int(row): place for place, row in enumerate(part.rows)}
    for row, image in enumerate(images):
        error = image.error or part.errors.get(row)
        if error is not None:
            yield Answer(error=error)
            continue
        place = places[row]
        yield Answer(
            top_predictions(tuned[place], names, count),
            None if plain is None else top_predictions(plain[place], names, count),
        )


_CONCLUSIONS: Mapping[JobKind, Callable[[Application], Metrics]] = {
    JobKind.EVALUATION: _evaluate,
    JobKind.CLASSIFICATION: _classify,
}
