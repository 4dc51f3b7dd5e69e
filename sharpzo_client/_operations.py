"""The API's calls as operations, and what is built of several calls as flows."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar
from urllib.parse import quote

from sharpzo_client._constants import (
    ANYTHING,
    MAX_BATCH_BYTES,
    MAX_BATCH_IMAGES,
    PAGE_SIZE,
    Anything,
)
from sharpzo_client._files import (
    BINARY,
    ImageInput,
    archive_name,
    artifact_part,
    open_archive,
    read_image,
    write_verified,
)
from sharpzo_client._operation import Blocking, Flow, Operation, Part, Retry, Sleep
from sharpzo_client._response import (
    reads,
    reads_file,
    reads_nothing,
    reads_object,
    reads_page,
    reads_series,
)
from sharpzo_client.errors import (
    DatasetFailed,
    InputError,
    JobCancelled,
    JobFailed,
    WaitTimeoutError,
)
from sharpzo_client.models import (
    Alias,
    AliasChange,
    ApiKey,
    AuditEntry,
    Backbone,
    Classification,
    Dataset,
    Health,
    Job,
    JobEvent,
    Model,
    NewApiKey,
    Page,
    Prompt,
    PromptAnswer,
    PromptAnswers,
    StepRecord,
    Usage,
)

if TYPE_CHECKING:
    import os

    from sharpzo_client.progress import ProgressView

M = TypeVar("M", bound=Model)
OnEvent = Callable[[JobEvent], object]
ExportFormat = Literal["npy", "onnx"]
ResultForm = Literal["jsonl", "csv"]


# Datasets


def create_dataset(
    archive: BinaryIO, filename: str, name: str, *, labelled: bool
) -> Operation[Dataset]:
    """Upload an open archive."""
    return Operation(
        method="POST",
        path="/v1/datasets",
        fields={"name": name} | ({} if labelled else {"unlabelled": "true"}),
        parts=(Part("file", filename, archive, BINARY),),
        headers=idempotency(None),
        read=reads(Dataset),
    )


def get_dataset(dataset_id: str) -> Operation[Dataset]:
    """Look at a dataset."""
    return Operation(method="GET", path=_path("datasets", dataset_id), read=reads(Dataset))


def list_datasets(page_size: int) -> Operation[Page[Dataset]]:
    """First page of the datasets."""
    return _list("/v1/datasets", Dataset, page_size)


def contact_sheet(dataset_id: str, path: str | os.PathLike[str]) -> Flow[Path]:
    """Fetch a contact sheet whole, or leave `path` as it was."""
    content = yield from Operation(
        method="GET",
        path=_path("datasets", dataset_id, "contact-sheet"),
        headers={"Accept": "image/jpeg"},
        read=lambda response: response.content,
    )
    return (yield from Blocking(lambda: write_verified(Path(path), content, None)))


def delete_dataset(dataset_id: str) -> Operation[None]:
    """Delete a dataset."""
    return Operation(method="DELETE", path=_path("datasets", dataset_id), read=reads_nothing)


def upload_dataset(
    path: str | os.PathLike[str],
    name: str | None,
    *,
    labelled: bool,
    wait: bool,
    timeout: float,
    poll: float,
) -> Flow[Dataset]:
    """Pack if it is a folder, upload, and wait until the service has read it."""
    source = Path(path)
    archive = yield from Blocking(lambda: open_archive(source))
    with archive:
        title = name or source.resolve().name
        dataset = yield from create_dataset(archive, archive_name(source), title, labelled=labelled)
    return (yield from wait_for_dataset(dataset.id, timeout, poll)) if wait else dataset


def wait_for_dataset(dataset_id: str, timeout: float, poll: float) -> Flow[Dataset]:
    """Look until the dataset is ready.

    Raises:
        DatasetFailed: the service could not use it.
        WaitTimeoutError: neither happened within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        dataset = yield from get_dataset(dataset_id)
        if dataset.status == "failed":
            raise DatasetFailed(dataset)
        if dataset.status == "ready":
            return dataset
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(f"dataset {dataset_id} is still {dataset.status}")
        yield Sleep(poll)


# Jobs


def create_job(
    dataset_id: str,
    *,
    backbone: str | None,
    preset: str | None,
    config: Mapping[str, Any] | None,
    name: str | None,
    metadata: Mapping[str, Any] | None,
    from_checkpoint: str | None,
    idempotency_key: str | None,
) -> Operation[Job]:
    """Submit a tuning job."""
    body = {
        "dataset_id": dataset_id,
        "backbone": backbone,
        "preset": preset,
        "config": config,
        "name": name,
        "metadata": metadata,
        "from_checkpoint": from_checkpoint,
    }
    return Operation(
        method="POST",
        path="/v1/jobs",
        json={key: value for key, value in body.items() if value is not None},
        headers=idempotency(idempotency_key),
        read=reads(Job),
    )


def get_job(job_id: str) -> Operation[Job]:
    """Look at a job."""
    return Operation(method="GET", path=_path("jobs", job_id), read=reads(Job))


def list_jobs(page_size: int, kind: str | None) -> Operation[Page[Job]]:
    """First page of the jobs, or of those of one kind."""
    return _list("/v1/jobs", Job, page_size, {} if kind is None else {"kind": kind})


def delete_job(job_id: str) -> Operation[None]:
    """Delete a job that has ended."""
    return Operation(method="DELETE", path=_path("jobs", job_id), read=reads_nothing)


def steer_job(job_id: str, move: Literal["pause", "resume", "cancel"]) -> Operation[Job]:
    """Ask a job for something; asking again changes nothing, so this may be repeated."""
    return Operation(method="POST", path=_path("jobs", job_id, move), read=reads(Job))


def list_events(job_id: str, after: int, page_size: int = PAGE_SIZE) -> Operation[Page[JobEvent]]:
    """First page of the events after a `seq`."""
    return _list(_path("jobs", job_id, "events"), JobEvent, page_size, {"after": after})


def stream_events(job_id: str, after: int) -> Operation[None]:
    """The same events, pushed."""
    return Operation(
        method="GET",
        path=_path("jobs", job_id, "events"),
        params={"after": after},
        headers={"Accept": "text/event-stream", "Last-Event-ID": str(after)},
        read=reads_nothing,
    )


def job_metrics(
    job_id: str, from_step: int | None, to_step: int | None, resolution: int | None
) -> Operation[tuple[StepRecord, ...]]:
    """The step records of a job."""
    bounds = {"from_step": from_step, "to_step": to_step, "resolution": resolution}
    return Operation(
        method="GET",
        path=_path("jobs", job_id, "metrics"),
        params={key: value for key, value in bounds.items() if value is not None},
        read=reads_series(StepRecord),
    )


def job_report(job_id: str) -> Operation[dict[str, Any]]:
    """The numbers of a run's report."""
    return Operation(method="GET", path=_path("jobs", job_id, "report"), read=reads_object)


def download_report(job_id: str, path: str | os.PathLike[str]) -> Flow[Path]:
    """Fetch a report's page whole, or leave `path` as it was."""
    content = yield from Operation(
        method="GET",
        path=_path("jobs", job_id, "report"),
        headers={"Accept": "text/html"},
        read=lambda response: response.content,
    )
    return (yield from Blocking(lambda: write_verified(Path(path), content, None)))


def stream_results(job_id: str, form: ResultForm) -> Operation[None]:
    """What a job found for every image."""
    return Operation(
        method="GET",
        path=_path("jobs", job_id, "results"),
        params={"format": form},
        headers={"Accept": "*/*"},
        read=reads_nothing,
    )


def wait_for_job(
    job_id: str,
    *,
    timeout: float | None,
    poll: float,
    on_event: OnEvent | None,
    view: AbstractContextManager[ProgressView] | None,
) -> Flow[Job]:
    """Look until the job has ended, handing on its events and showing how far it is.

    Raises:
        JobFailed: it failed.
        JobCancelled: it was cancelled.
        WaitTimeoutError: it has not ended within `timeout` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    seen = 0
    with view or nullcontext() as shown:
        while True:
            job = yield from get_job(job_id)
            if on_event is not None:  # after the look: an ended job's events are complete
                seen = yield from _hand_on_events(job_id, seen, on_event)
            if shown is not None:
                shown.update(job)
            if job.is_terminal:
                return succeeded(job)
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(f"job {job_id} is still {job.status}")
            yield Sleep(poll)


def succeeded(job: Job) -> Job:
    """The job itself, if it succeeded.

    Raises:
        JobFailed: it failed.
        JobCancelled: it was cancelled.
    """
    if job.status == "cancelled":
        raise JobCancelled(job)
    if job.status != "succeeded":
        raise JobFailed(job)
    return job


def _hand_on_events(job_id: str, seen: int, on_event: OnEvent) -> Flow[int]:
    operation: Operation[Page[JobEvent]] | None = list_events(job_id, seen)
    while operation is not None:
        page = yield from operation
        for event in page.data:
            on_event(event)
            seen = event.seq
        operation = next_page(operation, page)
    return seen


# Prompts


def get_prompt(ref: str) -> Operation[Prompt]:
    """Look at a prompt."""
    return Operation(method="GET", path=_path("prompts", ref), read=reads(Prompt))


def list_prompts(name: str | None, page_size: int) -> Operation[Page[Prompt]]:
    """First page of the prompts, or of the versions of one name."""
    return _list("/v1/prompts", Prompt, page_size, _given(name=name))


def pin_prompt(ref: str, *, pinned: bool) -> Operation[Prompt]:
    """Have a prompt kept in memory by every API process, or no longer."""
    method = "PUT" if pinned else "DELETE"
    return Operation(method=method, path=_path("prompts", ref, "pin"), read=reads(Prompt))


def delete_prompt(ref: str) -> Operation[None]:
    """Delete a prompt."""
    return Operation(method="DELETE", path=_path("prompts", ref), read=reads_nothing)


def import_prompt(source: str | os.PathLike[str] | bytes, name: str | None) -> Flow[Prompt]:
    """Send a prompt file to the registry."""
    part = yield from Blocking(lambda: artifact_part(source))
    operation = Operation(
        method="POST",
        path="/v1/prompts",
        fields={"name": name} if name else {},
        parts=(part,),
        headers=idempotency(None),
        read=reads(Prompt),
    )
    return (yield from operation)


def download_prompt(ref: str, path: str | os.PathLike[str]) -> Flow[Path]:
    """Fetch a prompt file whole and intact, or leave `path` as it was."""
    prompt = yield from get_prompt(ref)  # its id stays the same prompt, whatever a name points to
    content = yield from Operation(
        method="GET",
        path=_path("prompts", prompt.id, "download"),
        read=lambda response: response.content,
    )
    return (yield from Blocking(lambda: write_verified(Path(path), content, prompt.sha256)))


def export_prompt(
    ref: str, path: str | os.PathLike[str], form: ExportFormat, *, calibrated: bool
) -> Flow[Path]:
    """Fetch a prompt in another format, whole and intact, or leave `path` as it was."""
    export = yield from Operation(
        method="GET",
        path=_path("prompts", ref, "export"),
        params={"format": form, "calibrated": "true" if calibrated else "false"},
        read=reads_file,
    )
    return (yield from Blocking(lambda: write_verified(Path(path), export.content, export.sha256)))


@dataclass(frozen=True)
class Question:
    """What is asked about every image."""

    top_k: int
    calibrated: bool = False
    zero_shot: bool = False
    deadline: float | None = None  #: seconds that each request may take

    @property
    def params(self) -> dict[str, str | int]:
        """As a query."""
        wanted = {"calibrated": self.calibrated, "zero_shot": self.zero_shot}
        return {"top_k": self.top_k, **{name: "true" for name, on in wanted.items() if on}}

    @property
    def headers(self) -> dict[str, str]:
        """As header fields."""
        return {} if self.deadline is None else {"X-Timeout-Ms": f"{1000 * self.deadline:g}"}


def classify(ref: str, images: Sequence[ImageInput], question: Question) -> Flow[Classification]:
    """Label images, in as many requests as they need, all of them with the same version.

    Raises:
        InputError: no images, or one that cannot be read.
    """
    answers: list[Classification] = []
    for load in _batches(images):
        parts = yield from load
        answers.append((yield from _classify_batch(ref, parts, question)))
        ref = answers[0].prompt_id  # a newer version that appears meanwhile does not mix in
    results = tuple(result for answer in answers for result in answer.results)
    return answers[0].model_copy(update={"results": results})


def classify_with_prompts(
    prompts: Sequence[str], images: Sequence[ImageInput], question: Question
) -> Flow[tuple[PromptAnswer, ...]]:
    """Label images with several prompts, each of which stays the same version throughout.

    Raises:
        InputError: no images, no prompts, or an image that cannot be read.
    """
    if not prompts:
        raise InputError("there are no prompts to classify with")
    answers: tuple[PromptAnswer, ...] = ()
    for load in _batches(images):
        parts = yield from load
        refs = [answer.prompt_id or answer.ref for answer in answers] or prompts
        found = (yield from _classify_batch_with_prompts(refs, parts, question)).answers
        before = answers or tuple(answer.model_copy(update={"results": ()}) for answer in found)
        answers = tuple(map(_joined, before, found))
    return answers


def _joined(before: PromptAnswer, more: PromptAnswer) -> PromptAnswer:
    """The answer to all images so far; a prompt that failed once has no results at all."""
    error = before.error or more.error
    results = () if error else (*before.results, *more.results)
    return before.model_copy(update={"results": results, "error": error})


def _batches(images: Sequence[ImageInput]) -> Iterator[Blocking[tuple[Part, ...]]]:
    """Images as parts of requests, each of them read from disk when it is asked for."""
    if not images:
        raise InputError("there are no images to classify")
    numbered = list(enumerate(images))
    while numbered:
        parts: tuple[Part, ...] = ()

        def load() -> tuple[Part, ...]:
            nonlocal parts
            parts = _fill_batch(numbered)
            return parts

        yield Blocking(load)
        del numbered[: len(parts)]


def apply_prompt(
    ref: str,
    what: Literal["evaluate", "batch"],
    *,
    idempotency_key: str | None,
    **body: object,
) -> Operation[Job]:
    """Submit a job that applies a prompt to a dataset."""
    return Operation(
        method="POST",
        path=_path("prompts", ref, what),
        json={key: value for key, value in body.items() if value is not None},
        headers=idempotency(idempotency_key),
        read=reads(Job),
    )


def _fill_batch(images: Sequence[tuple[int, ImageInput]]) -> tuple[Part, ...]:
    """The first images as parts, as many as one request takes."""
    parts: list[Part] = []
    size = 0
    for index, image in images[:MAX_BATCH_IMAGES]:
        name, content = read_image(image, index)
        parts.append(Part("images", name, content, BINARY))
        size += len(content)
        if size >= MAX_BATCH_BYTES:
            break
    return tuple(parts)


def _classify_batch(
    ref: str, parts: tuple[Part, ...], question: Question
) -> Operation[Classification]:
    """Nothing is kept, so this may be repeated."""
    return Operation(
        method="POST",
        path=_path("prompts", ref, "classify"),
        params=question.params,
        parts=parts,
        headers=question.headers,
        read=reads(Classification),
    )


def _classify_batch_with_prompts(
    refs: Sequence[str], parts: tuple[Part, ...], question: Question
) -> Operation[PromptAnswers]:
    return Operation(
        method="POST",
        path=_path("classify"),
        params=question.params,
        fields={"prompts": ",".join(refs)},
        parts=parts,
        headers=question.headers,
        read=reads(PromptAnswers),
    )


# Aliases


def set_alias(
    alias: str,
    prompt_id: str,
    *,
    gate: Mapping[str, Any] | None,
    expected_prompt_id: str | Anything | None,
    comment: str | None,
) -> Operation[Alias]:
    """Point an alias to a prompt."""
    body = {"prompt_id": prompt_id} | _given(gate=gate, comment=comment)
    if expected_prompt_id is not ANYTHING:
        body["expected_prompt_id"] = expected_prompt_id  # None stays: it means nowhere
    return Operation(method="PUT", path=_path("aliases", alias), json=body, read=reads(Alias))


def roll_back_alias(
    alias: str,
    *,
    expected_prompt_id: str | None,
    comment: str | None,
    idempotency_key: str | None,
) -> Operation[Alias]:
    """Point an alias to what was in force before; the key keeps a repeat from going further."""
    return Operation(
        method="POST",
        path=_path("aliases", alias, "rollback"),
        json=_given(expected_prompt_id=expected_prompt_id, comment=comment),
        headers=idempotency(idempotency_key),
        read=reads(Alias),
    )


def get_alias(alias: str, at: datetime | str | None) -> Operation[Alias]:
    """Look at an alias, and at its history."""
    return Operation(
        method="GET",
        path=_path("aliases", alias),
        params={"limit": PAGE_SIZE, **_given(at=_moment(at))},
        read=reads(Alias),
    )


def alias_history(
    alias: str, at: datetime | str | None, page_size: int
) -> Operation[Page[AliasChange]]:
    """First page of an alias's history."""
    read = reads(Alias)
    return Operation(
        method="GET",
        path=_path("aliases", alias),
        params={"limit": page_size, **_given(at=_moment(at))},
        read=lambda response: read(response).page,
    )


def list_aliases(name: str | None, page_size: int) -> Operation[Page[Alias]]:
    """First page of the aliases."""
    return _list("/v1/aliases", Alias, page_size, _given(name=name))


def delete_alias(alias: str) -> Operation[None]:
    """Take an alias away."""
    return Operation(method="DELETE", path=_path("aliases", alias), read=reads_nothing)


def _moment(at: datetime | str | None) -> str | None:
    """RFC 3339.

    Raises:
        InputError: a time without its zone.
    """
    if not isinstance(at, datetime):
        return at
    if at.tzinfo is None:
        raise InputError(f"{at} has no time zone (datetime.now(UTC), or at.astimezone())")
    return at.isoformat()


# Keys


def create_key(
    name: str, scopes: Sequence[str], expires_in: int | None, rate_limit: str | None
) -> Operation[NewApiKey]:
    """Make a key. A repeated call makes no second one, but cannot tell the first one again."""
    body = {"name": name, "scopes": list(scopes)}
    return Operation(
        method="POST",
        path="/v1/keys",
        json=body | _given(expires_in_seconds=expires_in, rate_limit=rate_limit),
        headers=idempotency(None),
        read=reads(NewApiKey),
    )


def list_keys(page_size: int) -> Operation[Page[ApiKey]]:
    """First page of the keys."""
    return _list("/v1/keys", ApiKey, page_size)


def revoke_key(key_id: str) -> Operation[None]:
    """End a key."""
    return Operation(method="DELETE", path=_path("keys", key_id), read=reads_nothing)


def rotate_key(key_id: str, grace: int) -> Operation[NewApiKey]:
    """Replace a key."""
    return Operation(
        method="POST",
        path=_path("keys", key_id, "rotate"),
        json={"grace_seconds": grace},
        headers=idempotency(None),
        read=reads(NewApiKey),
    )


def list_audit(key_id: str | None, page_size: int) -> Operation[Page[AuditEntry]]:
    """First page of the audit log."""
    return _list("/v1/audit", AuditEntry, page_size, _given(key_id=key_id))


def get_usage() -> Operation[Usage]:
    """What the tenant has used."""
    return Operation(method="GET", path="/v1/usage", read=reads(Usage))


# The rest


def list_backbones() -> Operation[tuple[Backbone, ...]]:
    """What a job may ask for."""
    return Operation(method="GET", path="/v1/backbones", read=reads_series(Backbone))


def health(path: str) -> Operation[Health]:
    """Ask once, without patience."""
    return Operation(method="GET", path=path, retry=Retry.NEVER, read=reads(Health))


def next_page(operation: Operation[Page[M]], page: Page[M]) -> Operation[Page[M]] | None:
    """The call for the page after this one, if there is one."""
    if not page.has_more or page.next is None:
        return None
    return replace(operation, params={**operation.params, "after": page.next})


def idempotency(key: str | None) -> dict[str, str]:
    """The header by which the service knows a repeated call; one key per operation."""
    return {"Idempotency-Key": key or uuid.uuid4().hex}


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _list(
    path: str, item: type[M], page_size: int, params: Mapping[str, str | int] | None = None
) -> Operation[Page[M]]:
    return Operation(
        method="GET",
        path=path,
        params={"limit": page_size, **(params or {})},
        read=reads_page(item),
    )


def _path(*segments: str) -> str:
    return "/".join(("/v1", *(quote(segment, safe=":@") for segment in segments)))
