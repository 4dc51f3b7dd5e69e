"""`client.datasets`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from sharpzo_client._constants import DEFAULT_DATASET_TIMEOUT, DEFAULT_POLL, PAGE_SIZE
from sharpzo_client._operations import datasets as ops
from sharpzo_client.models import Dataset
from sharpzo_client.resources._base import AsyncResource, Resource


class Datasets(Resource):
    """Upload, inspect and delete datasets."""

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

        From a folder, only images, `classnames.json` and `split_zhou_*.json` are sent, and no
        hidden files.

        Args:
            path: The folder, or a zip or tar archive.
            name: Name of the dataset; default: the name of the folder or file.
            labelled: False for images without classes, in any folders; such a dataset can only be
                classified.
            wait: Wait until the service has processed it.
            timeout: Seconds to wait.
            poll: Seconds between two requests.

        Raises:
            InputError: There is nothing to upload at `path`.
            DatasetFailed: The service cannot use the dataset.
            WaitTimeoutError: It was not ready after `timeout` seconds.
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
        """Wait until a dataset is ready.

        Raises:
            DatasetFailed: The service cannot use the dataset.
            WaitTimeoutError: It was not ready after `timeout` seconds.
        """
        return self._transport.run(ops.wait_for_dataset(dataset_id, timeout, poll))

    def get(self, dataset_id: str) -> Dataset:
        """Return a dataset."""
        return self._transport.send(ops.get_dataset(dataset_id))

    def contact_sheet(self, dataset_id: str, path: str | os.PathLike[str]) -> Path:
        """Save a JPEG with a few images of each class to `path`, and return the path.

        Raises:
            NotFoundError: The dataset is not ready, or an older version of the service made it.
            InputError: `path` cannot be written.
        """
        return self._transport.run(ops.contact_sheet(dataset_id, path))

    def delete(self, dataset_id: str) -> None:
        """Delete a dataset.

        Raises:
            ConflictError: A job still needs it.
        """
        self._transport.send(ops.delete_dataset(dataset_id))

    def list(self, *, page_size: int = PAGE_SIZE) -> Iterator[Dataset]:
        """Iterate over all datasets, newest first."""
        return self._items(ops.list_datasets(page_size))


class AsyncDatasets(AsyncResource):
    """Upload, inspect and delete datasets. See `Datasets`."""

    async def upload(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        labelled: bool = True,
        wait: bool = True,
        timeout: float = DEFAULT_DATASET_TIMEOUT,  # noqa: ASYNC109 - same as the sync client
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
        timeout: float = DEFAULT_DATASET_TIMEOUT,  # noqa: ASYNC109 - same as the sync client
        poll: float = DEFAULT_POLL,
    ) -> Dataset:
        """Wait until a dataset is ready."""
        return await self._transport.run(ops.wait_for_dataset(dataset_id, timeout, poll))

    async def get(self, dataset_id: str) -> Dataset:
        """Return a dataset."""
        return await self._transport.send(ops.get_dataset(dataset_id))

    async def contact_sheet(self, dataset_id: str, path: str | os.PathLike[str]) -> Path:
        """Save a JPEG with a few images of each class to `path`, and return the path."""
        return await self._transport.run(ops.contact_sheet(dataset_id, path))

    async def delete(self, dataset_id: str) -> None:
        """Delete a dataset."""
        await self._transport.send(ops.delete_dataset(dataset_id))

    def list(self, *, page_size: int = PAGE_SIZE) -> AsyncIterator[Dataset]:
        """Iterate over all datasets, newest first."""
        return self._items(ops.list_datasets(page_size))
