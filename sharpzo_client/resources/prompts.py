"""`client.prompts`.

`ref` is a prompt's id, its name (the newest version), `name:version` or `name@alias`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sharpzo_client._constants import DEFAULT_TOP_K, PAGE_SIZE
from sharpzo_client._files import ImageInput
from sharpzo_client._operations import prompts as ops
from sharpzo_client._operations.classify import ClassifyOptions, classify
from sharpzo_client._operations.prompts import ExportFormat
from sharpzo_client.models import Classification, Job, Prompt
from sharpzo_client.resources._base import AsyncResource, Resource


class Prompts(Resource):
    """Classify with, evaluate, download, export and import tuned prompts."""

    def classify(
        self,
        ref: str,
        images: Sequence[ImageInput],
        *,
        top_k: int = DEFAULT_TOP_K,
        calibrated: bool = False,
        zero_shot: bool = False,
        deadline: float | None = None,
    ) -> Classification:
        """Label images; the answer has one result per image, in order.

        An image that the service cannot read has an `error` instead of predictions. Many images
        are sent in several requests, which the same version of the prompt answers.

        Args:
            ref: The prompt.
            images: Paths, bytes or Pillow images.
            top_k: Labels per image.
            calibrated: Return probabilities at the temperature fitted on validation images.
            zero_shot: Also return the predictions of the hand-written prompt.
            deadline: Seconds that each request may take, including its time in the queue.

        Raises:
            InputError: A file cannot be read.
            ConflictError: `calibrated` is set and the prompt has no temperature, or the service
                does not offer the prompt's backbone.
            DeadlineExceededError: The deadline has passed.
        """
        options = ClassifyOptions(top_k, calibrated, zero_shot, deadline)
        return self._transport.run(classify(ref, images, options))

    def evaluate(
        self,
        ref: str,
        dataset_id: str,
        *,
        split: str = "test",
        zero_shot: bool = True,
        classes: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a job that evaluates a prompt on a split of a labelled dataset.

        The main results are in the job's `metrics`, all of them in `client.jobs.report`.

        Args:
            ref: The prompt.
            dataset_id: The dataset.
            split: `train`, `val` or `test`.
            zero_shot: Also evaluate the hand-written prompt that tuning started from.
            classes: `base`, `new` or `all`: the part of the dataset's classes to distinguish,
                which may be new to the prompt; default: they must be the prompt's classes.
            name: Name of the job.
            metadata: Your own labels, text to text.
            idempotency_key: The same key with the same values returns the same job.

        Raises:
            UnprocessableEntityError: The split is empty, or the classes are not the prompt's.
        """
        operation = ops.apply_prompt(
            ref,
            "evaluate",
            dataset_id=dataset_id,
            split=split,
            zero_shot=zero_shot,
            classes=classes,
            name=name,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return self._transport.send(operation)

    def classify_dataset(
        self,
        ref: str,
        dataset_id: str,
        *,
        split: str | None = None,
        top_k: int = DEFAULT_TOP_K,
        calibrated: bool = False,
        zero_shot: bool = False,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a job that labels the images of a dataset, or of one split.

        `client.jobs.results` returns a record for each image; see `classify` for the options.
        """
        operation = ops.apply_prompt(
            ref,
            "batch",
            dataset_id=dataset_id,
            split=split,
            top_k=top_k,
            calibrated=calibrated,
            zero_shot=zero_shot,
            name=name,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return self._transport.send(operation)

    def download(self, ref: str, path: str | os.PathLike[str]) -> Path:
        """Save the prompt file to `path` completely or not at all, and return the path.

        Raises:
            DownloadError: The file is damaged: its SHA-256 is not the registry's.
            InputError: `path` cannot be written.
        """
        return self._transport.run(ops.download_prompt(ref, path))

    def export(
        self,
        ref: str,
        path: str | os.PathLike[str],
        format: ExportFormat = "npy",  # noqa: A002 - the API's own name
        *,
        calibrated: bool = False,
    ) -> Path:
        """Save the prompt to `path` as a file for other programs, and return the path.

        Args:
            ref: The prompt.
            path: The file to write, completely or not at all.
            format: `npy` is a float32 matrix [classes, E + 1] with the bias in its last column;
                `onnx` is a model of `image_embedding` [N, E] -> `probabilities` [N, classes] that
                also holds the class names. Rows are in the order of the prompt's `classes`.
            calibrated: Divide the logits by the prompt's temperature.

        Raises:
            DownloadError: The file was damaged on its way.
            ConflictError: `calibrated` is set and the prompt has no temperature.
            InputError: `path` cannot be written.
        """
        return self._transport.run(ops.export_prompt(ref, path, format, calibrated=calibrated))

    def upload(self, source: str | os.PathLike[str] | bytes, name: str | None = None) -> Prompt:
        """Import a prompt file (a path or bytes) as the next version of its name."""
        return self._transport.run(ops.import_prompt(source, name))

    def get(self, ref: str) -> Prompt:
        """Return a prompt."""
        return self._transport.send(ops.get_prompt(ref))

    def delete(self, ref: str) -> None:
        """Delete a prompt.

        Raises:
            ConflictError: An alias points to it, or an unfinished job uses it.
        """
        self._transport.send(ops.delete_prompt(ref))

    def pin(self, ref: str) -> Prompt:
        """Keep this version in the memory of every API process."""
        return self._transport.send(ops.pin_prompt(ref, pinned=True))

    def unpin(self, ref: str) -> Prompt:
        """Let API processes drop this version from memory when it is unused."""
        return self._transport.send(ops.pin_prompt(ref, pinned=False))

    def list(self, *, name: str | None = None, page_size: int = PAGE_SIZE) -> Iterator[Prompt]:
        """Iterate over all prompts, or the versions of one name, newest first."""
        return self._items(ops.list_prompts(name, page_size))


class AsyncPrompts(AsyncResource):
    """Classify with, evaluate, download, export and import tuned prompts. See `Prompts`."""

    async def classify(
        self,
        ref: str,
        images: Sequence[ImageInput],
        *,
        top_k: int = DEFAULT_TOP_K,
        calibrated: bool = False,
        zero_shot: bool = False,
        deadline: float | None = None,
    ) -> Classification:
        """Label images; the answer has one result per image, in order."""
        options = ClassifyOptions(top_k, calibrated, zero_shot, deadline)
        return await self._transport.run(classify(ref, images, options))

    async def evaluate(
        self,
        ref: str,
        dataset_id: str,
        *,
        split: str = "test",
        zero_shot: bool = True,
        classes: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a job that evaluates a prompt on a split of a labelled dataset."""
        operation = ops.apply_prompt(
            ref,
            "evaluate",
            dataset_id=dataset_id,
            split=split,
            zero_shot=zero_shot,
            classes=classes,
            name=name,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return await self._transport.send(operation)

    async def classify_dataset(
        self,
        ref: str,
        dataset_id: str,
        *,
        split: str | None = None,
        top_k: int = DEFAULT_TOP_K,
        calibrated: bool = False,
        zero_shot: bool = False,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a job that labels the images of a dataset, or of one split."""
        operation = ops.apply_prompt(
            ref,
            "batch",
            dataset_id=dataset_id,
            split=split,
            top_k=top_k,
            calibrated=calibrated,
            zero_shot=zero_shot,
            name=name,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return await self._transport.send(operation)

    async def download(self, ref: str, path: str | os.PathLike[str]) -> Path:
        """Save the prompt file to `path` completely or not at all, and return the path."""
        return await self._transport.run(ops.download_prompt(ref, path))

    async def export(
        self,
        ref: str,
        path: str | os.PathLike[str],
        format: ExportFormat = "npy",  # noqa: A002 - the API's own name
        *,
        calibrated: bool = False,
    ) -> Path:
        """Save the prompt to `path` as a file for other programs, and return the path."""
        return await self._transport.run(
            ops.export_prompt(ref, path, format, calibrated=calibrated)
        )

    async def upload(
        self, source: str | os.PathLike[str] | bytes, name: str | None = None
    ) -> Prompt:
        """Import a prompt file (a path or bytes) as the next version of its name."""
        return await self._transport.run(ops.import_prompt(source, name))

    async def get(self, ref: str) -> Prompt:
        """Return a prompt."""
        return await self._transport.send(ops.get_prompt(ref))

    async def delete(self, ref: str) -> None:
        """Delete a prompt."""
        await self._transport.send(ops.delete_prompt(ref))

    async def pin(self, ref: str) -> Prompt:
        """Keep this version in the memory of every API process."""
        return await self._transport.send(ops.pin_prompt(ref, pinned=True))

    async def unpin(self, ref: str) -> Prompt:
        """Let API processes drop this version from memory when it is unused."""
        return await self._transport.send(ops.pin_prompt(ref, pinned=False))

    def list(self, *, name: str | None = None, page_size: int = PAGE_SIZE) -> AsyncIterator[Prompt]:
        """Iterate over all prompts, or the versions of one name, newest first."""
        return self._items(ops.list_prompts(name, page_size))
