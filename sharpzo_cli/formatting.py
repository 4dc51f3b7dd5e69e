"""Printing the jobs, prompts, datasets and aliases of a service for people."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING

from sharpzo_cli.output import Row, percent, print_facts, print_list
from sharpzo_client.display import clock, phase_title
from sharpzo_engine.prompts.interval import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sharpzo_client import (
        Alias,
        AliasChange,
        Dataset,
        ImageResult,
        Job,
        JobEvent,
        Metrics,
        Prediction,
        Prompt,
    )

JOB_HEADER = ("JOB", "STATUS", "ACCURACY", "IMAGES", "AGE", "NAME")
PROMPT_HEADER = ("PROMPT", "VERSION", "ACCURACY", "IMAGES", "AGE", "NAME")
DATASET_HEADER = ("DATASET", "STATUS", "CLASSES", "IMAGES", "AGE", "NAME")
ALIAS_HEADER = ("ALIAS", "VERSION", "PROMPT", "NAME")
HISTORY_HEADER = ("SEQ", "WHEN", "ACTION", "PROMPT", "COMMENT")

#: Accuracies among the metrics -> name.
ACCURACIES = {
    "zero_shot_accuracy": "zero-shot accuracy",
    "val_accuracy": "validation accuracy",
    "prompt_test_accuracy": "test accuracy, prompt alone",
    "test_accuracy": "test accuracy",
    "accuracy": "accuracy",
    "macro_accuracy": "mean accuracy of classes",
}
#: Other metrics -> name.
METRICS = {
    "loss": "loss",
    "nll": "negative log-likelihood",
    "ece": "calibration error",
    "calibrated_ece": "calibration error, calibrated",
    "images": "images",
    "errors": "unreadable images",
}
_NOTHING = "-"
_AGES = ((86_400, "d"), (3600, "h"), (60, "m"), (0, "s"))


def show_jobs(jobs: Sequence[Job]) -> None:
    print_list(JOB_HEADER, [_job_row(job) for job in jobs])


def show_prompts(prompts: Sequence[Prompt]) -> None:
    print_list(PROMPT_HEADER, [_prompt_row(prompt) for prompt in prompts])


def show_datasets(datasets: Sequence[Dataset]) -> None:
    print_list(DATASET_HEADER, [_dataset_row(dataset) for dataset in datasets])


def show_aliases(aliases: Sequence[Alias]) -> None:
    rows = [(item.alias, str(item.version), item.prompt_id, item.name) for item in aliases]
    print_list(ALIAS_HEADER, rows)


def show_history(changes: Sequence[AliasChange]) -> None:
    rows = [
        (
            str(item.seq),
            when(item.created_at),
            item.action,
            item.prompt_id or _NOTHING,
            item.comment or "",
        )
        for item in changes
    ]
    print_list(HISTORY_HEADER, rows)


def show_job(job: Job, events: Sequence[JobEvent]) -> None:
    """Print everything about a job, with its latest events at the end."""
    print_facts([*_about(job), *measured(job.metrics), *_settings(job.config)])
    if events:
        lines = map(event_line, events)
        print_facts([("" if index else "events", line) for index, line in enumerate(lines)])


def show_prompt(prompt: Prompt) -> None:
    backbone, lineage = prompt.backbone, prompt.lineage
    facts = [
        ("prompt", prompt.id),
        ("name", f"{prompt.name}:{prompt.version}" if prompt.name else ""),
        ("aliases", ", ".join(prompt.aliases)),
        ("pinned", "yes" if prompt.pinned else ""),
        ("backbone", "" if backbone is None else " ".join(filter(None, _names(prompt)))),
        ("classes", ", ".join(prompt.classes)),
        ("job", prompt.job_id or ""),
        ("dataset", lineage.dataset_name or lineage.dataset_id or ""),
        ("created", when(prompt.created_at)),
        ("sha256", prompt.sha256 or ""),
    ]
    print_facts([*facts, *measured(prompt.metrics)])


def show_dataset(dataset: Dataset) -> None:
    splits = ", ".join(f"{size:,} {name}" for name, size in _sizes(dataset).items())
    error = dataset.error
    print_facts(
        [
            ("dataset", dataset.id),
            ("name", dataset.name or ""),
            ("status", dataset.status),
            ("error", "" if error is None else error.message),
            ("labels", "" if dataset.labelled else "none (it can only be classified)"),
            ("images", splits),
            ("classes", ", ".join(dataset.classes or ())),
            ("created", when(dataset.created_at)),
            ("sha256", dataset.sha256 or ""),
        ]
    )


def show_labels(images: Sequence[Path], results: Sequence[ImageResult]) -> None:
    """Print the labels of images, best first, and zero-shot labels if there are any.

    An image that could not be read has the reason instead of a label.
    """
    both = any(result.zero_shot for result in results)
    rows: list[Row] = []
    for image, result in zip(images, results, strict=True):
        cells = list(zip_longest(result.predictions, result.zero_shot if both else ()))
        if result.error is not None:
            rows.append(("", "", *(("", "") if both else ()), f"{image}: {result.error.message}"))
        for rank, pair in enumerate(cells):
            labels = [cell for p in pair[: 1 + both] for cell in _label(p)]
            rows.append((*labels, str(image) if rank == 0 else ""))
    headings = ("LABEL", "SCORE", *(("ZERO-SHOT", "SCORE") if both else ()), "IMAGE")
    print_list(headings, rows)


def _label(prediction: Prediction | None) -> tuple[str, str]:
    return ("", "") if prediction is None else (prediction.label, percent(prediction.score))


def event_line(event: JobEvent) -> str:
    """Describe an event in one line; a stage is called by its optimiser."""
    mark = {"warning": "! ", "error": "✗ "}.get(event.level, "")
    message, data = event.message or event.type, event.data or {}
    phase = data.get("phase")
    if event.type == "phase" and isinstance(phase, str):
        message = message.replace(phase, phase_title(phase, data.get("phase_label")), 1)
    return f"{when(event.created_at, seconds=True)}  {mark}{message}"


def show_outcome(job: Job) -> None:
    passes = f"{job.progress.forward_passes:,}" if job.kind == "tuning" else ""
    facts = [("job", job.id), ("status", job.status), *measured(job.metrics)]
    print_facts([*facts, ("forward passes", passes), ("prompt", job.prompt_id or "")])


def measured(metrics: Metrics) -> list[tuple[str, str]]:
    """Names and values of what is known, an accuracy with the images that it was measured on."""
    found = []
    for field, name in ACCURACIES.items():
        value, (images, interval) = getattr(metrics, field), _measured_on(metrics, field)
        if value is not None:
            found.append((name, accuracy_text(value, images, interval=interval)))
    values = ((name, getattr(metrics, field)) for field, name in METRICS.items())
    return found + [(name, f"{value:,.4g}") for name, value in values if value is not None]


def accuracy_text(accuracy: float | None, images: int | None, *, interval: bool = True) -> str:
    """An accuracy with its 95 % interval and images, as in `92.2% (88.4-94.9, 270 images)`.

    What is unknown is left out; `interval=False` is for images that also chose the prompt.
    """
    if accuracy is None or not images:
        return percent(accuracy)
    bounds = f"{interval_text(accuracy, images)}, " if interval else ""
    return f"{percent(accuracy)} ({bounds}{images_text(images)})"


def images_text(images: int) -> str:
    return f"{images:,} {'image' if images == 1 else 'images'}"


def interval_text(accuracy: float, images: int) -> str:
    """The 95 % interval in percent, as in `88.4-94.9`."""
    return "-".join(f"{100 * bound:.1f}" for bound in wilson_interval(accuracy, images))


def _measured_on(metrics: Metrics, field: str) -> tuple[int | None, bool]:
    """The images of an accuracy, None if unknown; and whether it has an interval.

    It has none on validation images, which chose the prompt, or as a mean over classes.
    """
    if metrics.accuracy is not None:  # an evaluation: all of its figures are of the same images
        return metrics.images, field != "macro_accuracy"
    if field == "val_accuracy" or not metrics.test_images:
        return metrics.validation_images, False
    return metrics.test_images, True


def when(moment: datetime | None, *, seconds: bool = False) -> str:
    if moment is None:
        return ""
    local = moment.astimezone()
    return f"{local:%F %T}" if seconds else f"{local:%F %R}"


def age(moment: datetime | None) -> str:
    if moment is None:
        return _NOTHING
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    size, unit = next((size, unit) for size, unit in _AGES if seconds >= size)
    return f"{seconds // max(1, size)}{unit}"


def _about(job: Job) -> Iterator[tuple[str, str]]:
    progress = job.progress
    yield "job", job.id
    yield "name", job.name or ""
    yield "kind", job.kind
    yield "status", job.status + (f" (attempt {job.attempt})" if job.attempt > 1 else "")
    yield "error", "" if job.error is None else f"{job.error.code}: {job.error.message}"
    yield "stopped by", job.stopped_by or ""
    yield "phase", phase_title(job.phase, job.phase_label) if job.phase else ""
    yield "step", f"{progress.step:,} of {progress.total_steps:,}" if progress.total_steps else ""
    yield "forward passes", f"{progress.forward_passes:,}" if progress.forward_passes else ""
    yield "time left", "" if progress.eta_seconds is None else clock(progress.eta_seconds)
    yield "dataset", job.dataset_id or ""
    yield "unlabelled", job.unlabelled_dataset_id or ""
    yield "backbone", job.backbone or ""
    yield "prompt", job.prompt_id or ""
    yield "checkpoint of", job.from_checkpoint or ""
    yield "created", when(job.created_at)
    yield "started", when(job.started_at)
    yield "finished", when(job.finished_at)
    yield "metadata", "  ".join(f"{key}={value}" for key, value in (job.metadata or {}).items())


def _settings(config: Mapping[str, object] | None) -> list[tuple[str, str]]:
    """Format a configuration as `--set` takes it, without values that are None."""
    if not config:
        return []
    flat = {
        (f"{key}.{inner}" if inner else key): value
        for key, section in config.items()
        for inner, value in (section.items() if isinstance(section, dict) else [("", section)])
    }
    return [("config", "  ".join(f"{k}={v}" for k, v in flat.items() if v is not None))]


def _job_row(job: Job) -> Row:
    return (
        job.id,
        _state(job),
        *_accuracy_cells(job.metrics, "test_accuracy", "accuracy", "val_accuracy"),
        age(job.created_at),
        job.name or "",
    )


def _accuracy_cells(metrics: Metrics, *fields: str) -> tuple[str, str]:
    """The first accuracy that is known, and its images."""
    for field in fields:
        accuracy, (images, _) = getattr(metrics, field), _measured_on(metrics, field)
        if accuracy is not None:
            return percent(accuracy), f"{images:,}" if images else _NOTHING
    return _NOTHING, _NOTHING


def _state(job: Job) -> str:
    if job.status != "running" or not job.phase:
        return job.status
    total = job.progress.total_steps
    return f"{job.phase} {job.progress.step / total:.0%}" if total else job.phase


def _prompt_row(prompt: Prompt) -> Row:
    name = " ".join([prompt.name or "", *(f"@{alias}" for alias in prompt.aliases)])
    return (
        prompt.id,
        _NOTHING if prompt.version is None else str(prompt.version),
        *_accuracy_cells(prompt.metrics, "test_accuracy"),
        age(prompt.created_at),
        name,
    )


def _dataset_row(dataset: Dataset) -> Row:
    return (
        dataset.id,
        dataset.status,
        _NOTHING if dataset.classes is None else f"{len(dataset.classes):,}",
        _NOTHING if dataset.images is None else f"{dataset.images:,}",
        age(dataset.created_at),
        dataset.name or "",
    )


def _names(prompt: Prompt) -> tuple[str, str | None]:
    return (prompt.backbone.name, prompt.backbone.pretrained) if prompt.backbone else ("", None)


def _sizes(dataset: Dataset) -> dict[str, int]:
    return {
        name: sum(size.values()) if isinstance(size, dict) else int(size)
        for name, size in (dataset.splits or {}).items()
    }
