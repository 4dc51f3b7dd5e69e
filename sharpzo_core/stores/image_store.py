"""`ImageStore`: images by content, stored once per tenant for all datasets that hold them.

    blobs            tenant, sha256, bytes; `released_at` where some dataset has released it
    dataset_images   which dataset holds which image

A file's row is written before the file, and deleted after it:

- `hold` writes the rows of a dataset's images, and only then `keep` stores files under their keys.
- The transaction that ends a dataset calls `release`: it deletes rows of `dataset_images` and marks
  the blobs. The mark is only a hint for `sweep`.
- `sweep` locks marked blobs, checks again whether a dataset holds them, and deletes file and row
  before it releases the lock. A dataset that is about to hold the same image waits for the lock,
  and then finds no file. So no grace period is needed, and a kill at any time leaves neither a file
  without a row, nor a held row without a file that is not being written.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from sharpzo_core.clock import Clock, utc_now
from sharpzo_core.database.engine import reading, writing
from sharpzo_core.database.tables import blobs, dataset_images, datasets
from sharpzo_core.errors import LeaseLost
from sharpzo_core.records.datasets import DatasetRecord, DatasetStatus, blob_key
from sharpzo_core.storage.artifact_store import ArtifactStore, Draft

LOCAL_BATCH = 256  # files that are deleted under one lock
REMOTE_BATCH = 16  # because each takes a round trip
_CHUNK = 500  # rows of one statement


class ImageStore:
    def __init__(self, engine: sa.Engine, artifacts: ArtifactStore, clock: Clock = utc_now) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self._clock = clock

    def hold(self, dataset: DatasetRecord, owner: str, images: Mapping[str, int]) -> None:
        """Record that the dataset holds these images: SHA-256 -> bytes.

        Raises:
            LeaseLost: `owner` no longer processes the dataset.
        """
        rows = [
            {"tenant": dataset.tenant, "sha256": sha256, "bytes": size}
            for sha256, size in sorted(
                images.items()
            )  # in the same order everywhere, against deadlocks
        ]
        with writing(self._engine) as connection:
            _lock(connection, dataset, owner)
            for start in range(0, len(rows), _CHUNK):
                _insert(connection, dataset.id, rows[start : start + _CHUNK])

    def keep(self, dataset: DatasetRecord, draft: Draft) -> None:
        """Store a file that the dataset holds, if it is not stored yet.

        Raises:
            StorageFull, StorageUnavailable: the store failed.
        """
        self._artifacts.keep(draft, blob_key(dataset.tenant, draft.sha256))

    def sweep(self) -> int:
        """Delete some of the files that no dataset holds; returns how many were checked.

        Raises:
            StorageUnavailable: the database or the artifact store does not answer.
        """
        batch = LOCAL_BATCH if self._artifacts.local else REMOTE_BATCH
        with writing(self._engine) as connection:
            marked = _marked(connection, batch)
            held = _held(connection, marked)
            for tenant, sha256 in marked:
                if (tenant, sha256) not in held:
                    self._artifacts.delete(blob_key(tenant, sha256))
                    connection.execute(sa.delete(blobs).where(_is(tenant, sha256)))
            for tenant, sha256 in held:
                update = sa.update(blobs).where(_is(tenant, sha256))
                connection.execute(update.values(released_at=None))
        return len(marked)

    def tenants(self) -> set[str]:
        """Tenants that have datasets, or images to delete."""
        query = sa.union(sa.select(datasets.c.tenant), sa.select(blobs.c.tenant))
        with reading(self._engine) as connection:
            return set(connection.execute(query).scalars())

    def unknown(self, tenant: str, hashes: Collection[str]) -> set[str]:
        wanted = (blobs.c.tenant == tenant) & blobs.c.sha256.in_(hashes)
        with reading(self._engine) as connection:
            known = connection.execute(sa.select(blobs.c.sha256).where(wanted)).scalars()
            return set(hashes).difference(known)

    def suspect(self, tenant: str, hashes: Collection[str]) -> None:
        """Have `sweep` check these files, which may have been stored after their last release."""
        now = self._clock()
        rows = [
            {"tenant": tenant, "sha256": sha256, "bytes": 0, "released_at": now}
            for sha256 in sorted(hashes)
        ]
        with writing(self._engine) as connection:
            blob = _inserting(connection)(blobs)
            marked = blob.on_conflict_do_update(
                index_elements=["tenant", "sha256"], set_={"released_at": now}
            )
            for start in range(0, len(rows), _CHUNK):
                connection.execute(marked, rows[start : start + _CHUNK])

    def release_orphans(self) -> int:
        """Release the images of deleted datasets (versions without shared images leave them)."""
        known = sa.select(datasets.c.id).where(datasets.c.id == dataset_images.c.dataset_id)
        orphans = sa.select(dataset_images.c.dataset_id).where(~known.exists()).distinct()
        with writing(self._engine) as connection:
            gone = list(connection.execute(orphans.limit(_CHUNK)).scalars())
            for dataset_id in gone:
                release(connection, dataset_id, self._clock)
        return len(gone)


def release(connection: sa.Connection, dataset_id: str, clock: Clock = utc_now) -> None:
    """Release all images of a dataset, within the transaction that ends it."""
    mine = dataset_images.c.dataset_id == dataset_id
    tenants = sa.select(dataset_images.c.tenant).where(mine).limit(1)
    tenant = connection.execute(tenants).scalar_one_or_none()
    if tenant is None:
        return
    its_images = sa.select(dataset_images.c.sha256).where(mine)
    held = (blobs.c.tenant == tenant) & blobs.c.sha256.in_(its_images)
    # In the same order everywhere, against deadlocks.
    in_order = sa.select(blobs.c.sha256).where(held).order_by(blobs.c.sha256).with_for_update()
    connection.execute(sa.select(sa.func.count()).select_from(in_order.subquery())).scalar_one()
    connection.execute(sa.update(blobs).where(held).values(released_at=clock()))
    connection.execute(sa.delete(dataset_images).where(mine))


def _lock(connection: sa.Connection, dataset: DatasetRecord, owner: str) -> None:
    """Keep the dataset in processing until this transaction ends."""
    wanted = (
        (datasets.c.id == dataset.id)
        & (datasets.c.lease_owner == owner)
        & (datasets.c.status == DatasetStatus.PROCESSING)
    )
    query = sa.select(datasets.c.id).where(wanted).with_for_update()
    if connection.execute(query).one_or_none() is None:
        raise LeaseLost("the dataset is no longer processed here")


def _insert(connection: sa.Connection, dataset_id: str, rows: list[dict[str, Any]]) -> None:
    insert = _inserting(connection)
    blob = insert(blobs)
    again = {"released_at": None, "bytes": blob.excluded.bytes}
    connection.execute(
        blob.on_conflict_do_update(index_elements=["tenant", "sha256"], set_=again), rows
    )
    held = [
        {"dataset_id": dataset_id, "tenant": row["tenant"], "sha256": row["sha256"]} for row in rows
    ]
    connection.execute(insert(dataset_images).on_conflict_do_nothing(), held)


def _inserting(connection: sa.Connection) -> Any:  # noqa: ANN401 - of either dialect
    return sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert


def _marked(connection: sa.Connection, limit: int) -> list[tuple[str, str]]:
    query = (
        sa.select(blobs.c.tenant, blobs.c.sha256)
        .where(blobs.c.released_at.is_not(None))
        .order_by(blobs.c.tenant, blobs.c.sha256)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [(tenant, sha256) for tenant, sha256 in connection.execute(query)]


def _held(connection: sa.Connection, marked: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    held = dataset_images.c
    by_tenant: dict[str, list[str]] = {}
    for tenant, sha256 in marked:
        by_tenant.setdefault(tenant, []).append(sha256)
    found: set[tuple[str, str]] = set()
    for tenant, hashes in by_tenant.items():
        query = sa.select(held.sha256).where(held.tenant == tenant, held.sha256.in_(hashes))
        found |= {(tenant, sha256) for sha256 in connection.execute(query.distinct()).scalars()}
    return found


def _is(tenant: str, sha256: str) -> sa.ColumnElement[bool]:
    return (blobs.c.tenant == tenant) & (blobs.c.sha256 == sha256)
