"""`client.prompts`.

`ref` is a prompt's id, its name (the newest version), `name:version` or `name@alias`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharpzo_client import _operations as ops
from sharpzo_client._constants import DEFAULT_TOP_K, PAGE_SIZE
from sharpzo_client.resources._base import AsyncResource, Resource

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from pathlib import Path

    from sharpzo_client._files import ImageInput
    from sharpzo_client._operations import ExportFormat
    from sharpzo_client.models import Classification, Job, Prompt


class Prompts(Resource):
    """Tuned prompts: classify, evaluate, look, download, export, import."""

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
        """Label images (paths, bytes or Pillow images); one result each, in order.

        An image that cannot be read by the service has an `error` instead of predictions. Many
        images are sent in several requests, all answered by the same version of the prompt.

        Args:
            ref: which prompt.
            images: what to label.
            top_k: labels per image.
            calibrated: probabilities at the temperature that was fitted on validation images.
            zero_shot: tell as well what the hand-written prompt says.
            deadline: seconds that each request may take, its time in the service's queue included.

        Raises:
            InputError: a file cannot be read here.
            ConflictError: `calibrated`, and the prompt has no temperature; or the prompt's backbone
                is not served.
            DeadlineExceededError: the deadline has passed.
        """
        question = ops.Question(top_k, calibrated, zero_shot, deadline)
        return self._transport.run(ops.classify(ref, images, question))

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
        """Submit a job that measures a prompt on a split of a labelled dataset.

        `classes` (`base`, `new`, `all`) takes that part of the dataset's classes, which may be new
        to the prompt; by default they must be the prompt's. With `zero_shot`, the hand-written
        prompt that tuning began with is measured beside it. Figures are the job's `metrics`, and
        all of them are in `client.jobs.report`.

        Raises:
            UnprocessableEntityError: the split is empty, or the classes are not the prompt's.
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

        `client.jobs.results` has a record for each. `calibrated` scores are those at the prompt's
        own temperature; `zero_shot` adds what the hand-written prompt would have answered.
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
        """Fetch the prompt file to `path`, whole and intact or not at all.

        Raises:
            DownloadError: the bytes are not those that the registry names.
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
        """Fetch the prompt to `path` as a file for other programs, whole and intact or not at all.

        `npy` is a float32 matrix [classes, E + 1], the bias in its last column; `onnx` a model of
        `image_embedding` [N, E] -> `probabilities` [N, classes] that tells the class names as well.
        Rows are in the order of the prompt's `classes`. `calibrated` divides the logits by the
        prompt's temperature.

        Raises:
            DownloadError: the bytes are not those that the service sent.
            ConflictError: the prompt has no temperature to calibrate by.
        """
        return self._transport.run(ops.export_prompt(ref, path, format, calibrated=calibrated))

    def upload(self, source: str | os.PathLike[str] | bytes, name: str | None = None) -> Prompt:
        """Import a prompt file into the registry."""
        return self._transport.run(ops.import_prompt(source, name))

    def get(self, ref: str) -> Prompt:
        """Look at a prompt."""
        return self._transport.send(ops.get_prompt(ref))

    def delete(self, ref: str) -> None:
        """Delete a prompt.

        Raises:
            ConflictError: an alias points to it, or a job that has not ended uses it.
        """
        self._transport.send(ops.delete_prompt(ref))

    def pin(self, ref: str) -> Prompt:
        """Have every API process keep this version in memory."""
        return self._transport.send(ops.pin_prompt(ref, pinned=True))

    def unpin(self, ref: str) -> Prompt:
        """Have it kept in memory only as long as it is asked for."""
        return self._transport.send(ops.pin_prompt(ref, pinned=False))

    def list(self, *, name: str | None = None, page_size: int = PAGE_SIZE) -> Iterator[Prompt]:
        """All prompts, or the versions of one name, fetched page by page."""
        return self._items(ops.list_prompts(name, page_size))


class AsyncPrompts(AsyncResource):
    """Tuned prompts: classify, evaluate, look, download, export, import. See `Prompts`."""

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
        """Label images (paths, bytes or Pillow images); one result each, in order."""
        question = ops.Question(top_k, calibrated, zero_shot, deadline)
        return await self._transport.run(ops.classify(ref, images, question))

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
        """Submit a job that measures a prompt on a split of a labelled dataset."""
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
        """Fetch the prompt file to `path`, whole and intact or not at all."""
        return await self._transport.run(ops.download_prompt(ref, path))

    async def export(
        self,
        ref: str,
        path: str | os.PathLike[str],
        format: ExportFormat = "npy",  # noqa: A002 - the API's own name
        *,
        calibrated: bool = False,
    ) -> Path:
        """Fetch the prompt to `path` as a file for other programs, whole or not at all."""
        return await self._transport.run(
            ops.export_prompt(ref, path, format, calibrated=calibrated)
        )

    async def upload(
        self, source: str | os.PathLike[str] | bytes, name: str | None = None
    ) -> Prompt:
        """Import a prompt file into the registry."""
        return await self._transport.run(ops.import_prompt(source, name))

    async def get(self, ref: str) -> Prompt:
        """Look at a prompt."""
        return await self._transport.send(ops.get_prompt(ref))

    async def delete(self, ref: str) -> None:
        """Delete a prompt."""
        await self._transport.send(ops.delete_prompt(ref))

    async def pin(self, ref: str) -> Prompt:
        """Have every API process keep this version in memory."""
        return await self._transport.send(ops.pin_prompt(ref, pinned=True))

    async def unpin(self, ref: str) -> Prompt:
        """Have it kept in memory only as long as it is asked for."""
        return await self._transport.send(ops.pin_prompt(ref, pinned=False))

    def list(self, *, name: str | None = None, page_size: int = PAGE_SIZE) -> AsyncIterator[Prompt]:
        """All prompts, or the versions of one name, fetched page by page."""
        return self._items(ops.list_prompts(name, page_size))
