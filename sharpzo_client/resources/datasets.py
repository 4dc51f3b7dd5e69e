"""`client.datasets`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharpzo_client import _operations as ops
from sharpzo_client._constants import DEFAULT_DATASET_TIMEOUT, DEFAULT_POLL, PAGE_SIZE
from sharpzo_client.resources._base import AsyncResource, Resource

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sharpzo_client.models import Dataset


class Datasets(Resource):
    """Datasets: upload, look, delete."""

    def upload(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        labelled: bool = True,
        wait: bool = True,
        timeout: float = DEFAULT_DATASET_TIMEOUT,
        poll: float = DEFAULT_POLL,
    ) -> Dataset:
        """Upload a folder or an archive and wait until it is ready.

        Of a folder, images, `classnames.json` and `split_zhou_*.json` are sent; hidden files are
        not. `name` defaults to the folder's or file's own. With `labelled=False` images may lie in
        whatever folders; such a dataset can be classified, no more.

        Raises:
            InputError: there is nothing to upload at `path`.
            DatasetFailed: the service could not use it.
            WaitTimeoutError: it was not ready after `timeout` seconds.
        """
        return self._transport.run(
            ops.upload_dataset(path, name, labelled=labelled, wait=wait, timeout=timeout, poll=poll)
        )

    def wait(
        self,
        dataset_id: str,
        *,
        timeout: float = DEFAULT_DATASET_TIMEOUT,
        poll: float = DEFAULT_POLL,
    ) -> Dataset:
        """Wait until a dataset is ready; raises as `upload` does."""
        return self._transport.run(ops.wait_for_dataset(dataset_id, timeout, poll))

    def get(self, dataset_id: str) -> Dataset:
        """Look at a dataset."""
        return self._transport.send(ops.get_dataset(dataset_id))

    def contact_sheet(self, dataset_id: str, path: str | os.PathLike[str]) -> Path:
        """Write a JPEG with a few images of each class to `path`, and give it back.

        Raises:
            NotFoundError: the dataset is not ready, or an earlier version of the service read it.
            InputError: the place cannot be written to.
        """
        return self._transport.run(ops.contact_sheet(dataset_id, path))

    def delete(self, dataset_id: str) -> None:
        """Delete a dataset; one that a job still needs raises ConflictError."""
        self._transport.send(ops.delete_dataset(dataset_id))

    def list(self, *, page_size: int = PAGE_SIZE) -> Iterator[Dataset]:
        """All datasets, fetched page by page."""
        return self._items(ops.list_datasets(page_size))


class AsyncDatasets(AsyncResource):
    """Datasets: upload, look, delete. See `Datasets`."""

    async def upload(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        labelled: bool = True,
        wait: bool = True,
        timeout: float = DEFAULT_DATASET_TIMEOUT,  # noqa: ASYNC109 - as in the sync client
        poll: float = DEFAULT_POLL,
    ) -> Dataset:
        """Upload a folder or an archive and wait until it is ready."""
        return await self._transport.run(
            ops.upload_dataset(path, name, labelled=labelled, wait=wait, timeout=timeout, poll=poll)
        )

    async def wait(
        self,
        dataset_id: str,
        *,
        timeout: float = DEFAULT_DATASET_TIMEOUT,  # noqa: ASYNC109 - as in the sync client
        poll: float = DEFAULT_POLL,
    ) -> Dataset:
        """Wait until a dataset is ready."""
        return await self._transport.run(ops.wait_for_dataset(dataset_id, timeout, poll))

    async def get(self, dataset_id: str) -> Dataset:
        """Look at a dataset."""
        return await self._transport.send(ops.get_dataset(dataset_id))

    async def contact_sheet(self, dataset_id: str, path: str | os.PathLike[str]) -> Path:
        """Write a JPEG with a few images of each class to `path`, and give it back."""
        return await self._transport.run(ops.contact_sheet(dataset_id, path))

    async def delete(self, dataset_id: str) -> None:
        """Delete a dataset."""
        await self._transport.send(ops.delete_dataset(dataset_id))

    def list(self, *, page_size: int = PAGE_SIZE) -> AsyncIterator[Dataset]:
        """All datasets, fetched page by page."""
        return self._items(ops.list_datasets(page_size))
