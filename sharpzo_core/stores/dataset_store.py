"""`DatasetStore`: datasets and their states. `dataset_leases.py` leases those in processing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from sharpzo_core.database.engine import reading, record, writing
from sharpzo_core.database.pagination import Listing, newest_first
from sharpzo_core.database.tables import datasets, jobs
from sharpzo_core.errors import LeaseLost, NotFound, StateConflict
from sharpzo_core.ids import Prefix, is_id, new_id
from sharpzo_core.records.datasets import DatasetRecord, DatasetStatus
from sharpzo_core.records.jobs import TERMINAL
from sharpzo_core.stores.image_store import release
from sharpzo_core.stores.quotas import MeteredStore


class DatasetStore(MeteredStore):
    """Datasets: first in processing, then ready or failed, which is final."""

    table = datasets

    def create(
        self,
        name: str,
        source: Mapping[str, Any] | None = None,
        dataset_id: str | None = None,
        in_transaction: Callable[[sa.Connection, DatasetRecord], None] | None = None,
        size: int = 0,
    ) -> DatasetRecord:
        """A new dataset in `processing`; `source` lets a restarted process continue it.

        `size` is that of its archive in bytes. What `in_transaction` writes is committed with it.

        Raises:
            QuotaExceeded: the tenant may not store so much.
        """
        dataset = DatasetRecord(
            id=dataset_id or new_id(Prefix.DATASET),
            tenant=self._owner,
            name=name,
            status=DatasetStatus.PROCESSING,
            source=dict(source or {}),
            bytes=size,
            created_at=self._clock(),
        )
        values = {column.name: getattr(dataset, column.name) for column in datasets.columns}
        with writing(self._engine) as connection:
            self._quotas.check_storage(connection, dataset.tenant, size, dataset.created_at)
            connection.execute(sa.insert(datasets).values(values | {"classes": []}))
            if in_transaction is not None:
                in_transaction(connection, dataset)
        return dataset

    def get(self, dataset_id: str) -> DatasetRecord:
        """The dataset.

        Raises:
            NotFound: there is none with this id.
        """
        with reading(self._engine) as connection:
            return self._get(connection, dataset_id)

    def list(self, limit: int = 20, after: str | None = None) -> Listing[DatasetRecord]:
        """A page of datasets, newest first.

        Raises:
            ValidationFailed: the cursor or the limit is wrong.
        """
        with reading(self._engine) as connection:
            wanted = self._own(datasets)
            return newest_first(connection, datasets, Prefix.DATASET, limit, after, _read, wanted)

    def mark_ready(
        self,
        dataset_id: str,
        *,
        classes: Sequence[str],
        counts: Mapping[str, Mapping[str, int]],
        sha256: str,
        report: Mapping[str, Any] | None = None,
        owner: str | None = None,
        shares_images: bool = False,
    ) -> DatasetRecord:
        """Mark the dataset as usable; `counts` is split -> class name -> images.

        Raises:
            NotFound: it was deleted.
            StateConflict: it is no longer processing, or not leased by `owner`, if one is given.
            QuotaExceeded: its images are more than its tenant may store.
        """
        return self._leave_processing(
            dataset_id,
            owner,
            status=DatasetStatus.READY,
            classes=list(classes),
            counts={split: dict(images) for split, images in counts.items()},
            sha256=sha256,
            bytes=_stored_bytes(report),
            report=None if report is None else dict(report),
            shares_images=shares_images,
        )

    def mark_failed(
        self,
        dataset_id: str,
        code: str,
        message: str,
        report: Mapping[str, Any] | None = None,
        owner: str | None = None,
    ) -> DatasetRecord:
        """Mark the dataset as unusable, and release its images.

        Raises:
            NotFound: it was deleted.
            StateConflict: it is no longer processing, or not leased by `owner`, if one is given.
        """
        return self._leave_processing(
            dataset_id,
            owner,
            status=DatasetStatus.FAILED,
            error_code=code,
            error_message=message,
            bytes=0,
            report=None if report is None else dict(report),
        )

    def _leave_processing(
        self,
        dataset_id: str,
        owner: str | None,
        **values: Any,  # noqa: ANN401 - columns of `datasets`
    ) -> DatasetRecord:
        update = (
            sa.update(datasets)
            .where(
                datasets.c.id == dataset_id,
                datasets.c.status == DatasetStatus.PROCESSING,
                self._own(datasets),
            )
            .values(values | {"lease_owner": None, "lease_expires_at": None})
            .returning(datasets)
        )
        if owner is not None:
            update = update.where(datasets.c.lease_owner == owner)
        with writing(self._engine) as connection:
            row = connection.execute(update).one_or_none()
            if row is None:
                status = self._get(connection, dataset_id).status
                if status is DatasetStatus.PROCESSING:
                    raise LeaseLost("another process is unpacking the dataset now")
                raise StateConflict(f"the dataset is {status}, no longer processing")
            if row.status == DatasetStatus.FAILED:
                release(connection, dataset_id, self._clock)
            self._quotas.check_kept(connection, row.tenant, self._clock())
            return _read(row)

    def delete(self, dataset_id: str) -> None:
        """Delete the dataset, and release its images.

        Finished jobs keep its id; the caller removes its own files.

        Raises:
            NotFound: there is none with this id.
            StateConflict: a job that is not finished uses it.
        """
        with writing(self._engine) as connection:
            self._get(connection, dataset_id, lock=True)
            used = sa.select(jobs.c.id).where(
                (jobs.c.dataset_id == dataset_id) | (jobs.c.unlabelled_dataset_id == dataset_id),
                jobs.c.status.not_in(TERMINAL),
                self._own(jobs),
            )
            if connection.execute(used.limit(1)).first() is not None:
                raise StateConflict("a job that is not finished uses this dataset")
            release(connection, dataset_id, self._clock)
            mine = (datasets.c.id == dataset_id) & self._own(datasets)
            connection.execute(sa.delete(datasets).where(mine))

    def processing_ids(self) -> set[str]:
        """The datasets in processing, whose archives are still needed."""
        processing = datasets.c.status == DatasetStatus.PROCESSING
        query = sa.select(datasets.c.id).where(processing, self._own(datasets))
        with reading(self._engine) as connection:
            return set(connection.execute(query).scalars())

    def _get(
        self, connection: sa.Connection, dataset_id: str, *, lock: bool = False
    ) -> DatasetRecord:
        row = None
        if is_id(Prefix.DATASET, dataset_id):
            query = sa.select(datasets).where(datasets.c.id == dataset_id, self._own(datasets))
            row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is None:
            raise NotFound("dataset", dataset_id)
        return _read(row)


def _stored_bytes(report: Mapping[str, Any] | None) -> int:
    """Bytes of its images, by the report of the process that unpacked them."""
    return int((report or {}).get("bytes", 0))


def _read(row: sa.Row[Any]) -> DatasetRecord:
    return DatasetRecord(
        **record(row, status=DatasetStatus(row.status), classes=tuple(row.classes))
    )
