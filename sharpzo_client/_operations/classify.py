"""Calls that label images: as many requests as the images need, all with one version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sharpzo_client._constants import MAX_BATCH_BYTES, MAX_BATCH_IMAGES
from sharpzo_client._files import BINARY, ImageInput, read_image
from sharpzo_client._operation import Blocking, Flow, Operation, Part
from sharpzo_client._operations import _build as api
from sharpzo_client._response import reads
from sharpzo_client.errors import InputError
from sharpzo_client.models import Classification, PromptAnswer, PromptAnswers


@dataclass(frozen=True)
class ClassifyOptions:
    """The options of a classify request."""

    top_k: int
    calibrated: bool = False
    zero_shot: bool = False
    deadline: float | None = None  #: seconds that each request may take

    @property
    def params(self) -> dict[str, str | int]:
        flags = {"calibrated": self.calibrated, "zero_shot": self.zero_shot}
        return {"top_k": self.top_k, **{name: "true" for name, on in flags.items() if on}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.deadline is None else {"X-Timeout-Ms": f"{1000 * self.deadline:g}"}


def classify(
    ref: str, images: Sequence[ImageInput], options: ClassifyOptions
) -> Flow[Classification]:
    """Label images with one version of a prompt.

    Raises:
        InputError: there are no images, or one cannot be read.
    """
    answers: list[Classification] = []
    for load in _batches(images):
        parts = yield from load
        answers.append((yield from _classify_batch(ref, parts, options)))
        ref = answers[0].prompt_id  # later batches must not get a version that appears meanwhile
    results = tuple(result for answer in answers for result in answer.results)
    return answers[0].model_copy(update={"results": results})


def classify_with_prompts(
    prompts: Sequence[str], images: Sequence[ImageInput], options: ClassifyOptions
) -> Flow[tuple[PromptAnswer, ...]]:
    """Label images with several prompts, each in one version.

    Raises:
        InputError: there are no images or no prompts, or an image cannot be read.
    """
    if not prompts:
        raise InputError("there are no prompts to classify with (name at least one)")
    answers: tuple[PromptAnswer, ...] = ()
    for load in _batches(images):
        parts = yield from load
        refs = [answer.prompt_id or answer.ref for answer in answers] or prompts
        batch = (yield from _classify_batch_with_prompts(refs, parts, options)).answers
        before = answers or tuple(answer.model_copy(update={"results": ()}) for answer in batch)
        answers = tuple(map(_joined, before, batch))
    return answers


def _joined(before: PromptAnswer, batch: PromptAnswer) -> PromptAnswer:
    """The answer to all images so far; a prompt that failed once has no results at all."""
    error = before.error or batch.error
    results = () if error else (*before.results, *batch.results)
    return before.model_copy(update={"results": results, "error": error})


def _batches(images: Sequence[ImageInput]) -> Iterator[Blocking[tuple[Part, ...]]]:
    """Split images into requests; each batch is read from disk only when it is sent."""
    if not images:
        raise InputError("there are no images to classify (give at least one)")
    numbered = list(enumerate(images))
    while numbered:
        parts: tuple[Part, ...] = ()

        def load() -> tuple[Part, ...]:
            nonlocal parts
            parts = _fill_batch(numbered)
            return parts

        yield Blocking(load)
        del numbered[: len(parts)]


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
    ref: str, parts: tuple[Part, ...], options: ClassifyOptions
) -> Operation[Classification]:
    """One request; the service stores nothing, so it may be retried."""
    return Operation(
        method="POST",
        path=api.path("prompts", ref, "classify"),
        params=options.params,
        parts=parts,
        headers=options.headers,
        read=reads(Classification),
    )


def _classify_batch_with_prompts(
    refs: Sequence[str], parts: tuple[Part, ...], options: ClassifyOptions
) -> Operation[PromptAnswers]:
    return Operation(
        method="POST",
        path=api.path("classify"),
        params=options.params,
        fields={"prompts": ",".join(refs)},
        parts=parts,
        headers=options.headers,
        read=reads(PromptAnswers),
    )
