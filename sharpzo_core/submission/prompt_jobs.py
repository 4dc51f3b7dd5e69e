"""Accepting a job that applies a prompt to a dataset: every check, without HTTP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from sharpzo_core.backbones import serving
from sharpzo_core.errors import BackboneNotServed, StateConflict, ValidationFailed
from sharpzo_core.records.datasets import SPLITS, DatasetRecord, DatasetStatus
from sharpzo_core.records.jobs import Job, JobKind, NewJob, Origin
from sharpzo_core.records.prompts import PromptRecord
from sharpzo_core.schemas.jobs import BatchCreate, EvaluationCreate
from sharpzo_core.settings import Settings
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.job_store import UNKNOWN, JobStore
from sharpzo_core.submission.tuning import check_queue
from sharpzo_engine.data.layout import Part, labels_of

LISTED = 5  # classes that an error message names


@dataclass(frozen=True)
class PromptJobSubmitter:
    """Checks and creates evaluation and classification jobs."""

    settings: Settings
    jobs: JobStore
    datasets: DatasetStore
    origin: Origin = UNKNOWN

    def submit_evaluation(
        self,
        prompt: PromptRecord,
        request: EvaluationCreate,
        in_transaction: Callable[[sa.Connection, Job], None] | None = None,
    ) -> Job:
        """Store a job that measures the prompt, with what `in_transaction` writes.

        Raises:
            NotFound: there is no such dataset.
            StateConflict: it is not ready.
            ValidationFailed: it has no labels, no images in the split, or other classes.
            BackboneNotServed: nothing that is offered can be the prompt's backbone.
            TooManyJobs: the tenant's queue is full.
            QuotaExceeded: the tenant may not have this job now.
        """
        dataset = self._ready(request.dataset_id)
        if not dataset.labelled:
            message = "the dataset has no labels to measure a prompt by (classify it instead)"
            raise ValidationFailed([("/dataset_id", message)])
        _check_split(dataset, request.split)
        if request.classes is None:
            _check_classes(dataset.classes, prompt.classes)
        else:
            _check_part(dataset, request.split, request.classes)
        return self._create(JobKind.EVALUATION, prompt, request, in_transaction)

    def submit_classification(
        self,
        prompt: PromptRecord,
        request: BatchCreate,
        in_transaction: Callable[[sa.Connection, Job], None] | None = None,
    ) -> Job:
        """Store a job that labels images; raises as `submit_evaluation`, but for labels."""
        dataset = self._ready(request.dataset_id)
        _check_split(dataset, request.split)
        return self._create(JobKind.CLASSIFICATION, prompt, request, in_transaction)

    def _ready(self, dataset_id: str) -> DatasetRecord:
        dataset = self.datasets.get(dataset_id)
        if dataset.status is not DatasetStatus.READY:
            raise StateConflict(f"the dataset is {dataset.status}, not ready")
        return dataset

    def _create(
        self,
        kind: JobKind,
        prompt: PromptRecord,
        request: EvaluationCreate | BatchCreate,
        in_transaction: Callable[[sa.Connection, Job], None] | None,
    ) -> Job:
        specs = serving(self.settings.backbone_specs, prompt.backbone)
        if not specs:
            name = prompt.backbone.get("name")
            raise BackboneNotServed(f"the prompt was tuned on {name}, which is not offered here")
        check_queue(self.jobs, self.settings)
        new = NewJob(
            kind=kind,
            dataset_id=request.dataset_id,
            backbone=specs[0].name,
            config=request.parameters(),
            prompt_id=prompt.id,
            name=request.name,
            metadata=request.metadata,
        )
        return self.jobs.create(new, self.origin, in_transaction)


def _check_split(dataset: DatasetRecord, split: str | None) -> None:
    """Check that the split has images; None stands for all of them.

    Raises:
        ValidationFailed: it has none.
    """
    if split is None:
        if not dataset.images:
            raise ValidationFailed([("/dataset_id", "the dataset has no images")])
    elif not dataset.labelled:
        raise ValidationFailed([("/split", "a dataset without labels has no splits (omit split)")])
    elif not dataset.splits[split]:
        filled = ", ".join(name for name in SPLITS if dataset.splits[name])
        raise ValidationFailed([("/split", f"has no images in this dataset (it has: {filled})")])


def _check_part(dataset: DatasetRecord, split: str, classes: Part) -> None:
    """Check that the part has at least two classes, and images of them.

    Raises:
        ValidationFailed: it has not.
    """
    names = classes_of(dataset, classes)
    if len(names) < 2:
        message = f"the dataset has {len(names)} {classes} classes (there must be two)"
        raise ValidationFailed([("/classes", message)])
    if not sum(dataset.counts[split].get(name, 0) for name in names):
        raise ValidationFailed([("/split", f"has no images of the {classes} classes")])


def classes_of(dataset: DatasetRecord, classes: Part | None) -> tuple[str, ...]:
    """The names of a part of the dataset's classes; None stands for all of them."""
    labels = labels_of(classes or "all", len(dataset.classes))
    return dataset.classes[labels.start : labels.stop]


def _check_classes(classes: Sequence[str], known: Sequence[str]) -> None:
    """Check that every class of the dataset is one of the prompt's; order does not matter.

    Raises:
        ValidationFailed: with some of the classes that differ.
    """
    extra = sorted(set(classes) - set(known))
    if not extra:
        return
    message = f"has classes that the prompt does not know: {_listed(extra)}"
    missing = sorted(set(known) - set(classes))
    if missing:
        message += f"; the prompt knows, and the dataset lacks: {_listed(missing)}"
    raise ValidationFailed([("/dataset_id", f"{message} (classes are matched by name)")])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(repr(name) for name in names[:LISTED]) + more
