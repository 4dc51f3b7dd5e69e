"""`ImageWriter`: the images of one dataset on their way into the store, some at a time."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sharpzo_core.errors import CoreError
from sharpzo_core.records.datasets import blob_key, images_prefix

if TYPE_CHECKING:
    from pathlib import Path

    from sharpzo_core.records.datasets import DatasetRecord
    from sharpzo_core.storage.artifact_store import ArtifactStore, Draft
    from sharpzo_core.stores.image_store import ImageStore

BATCH_FILES = 256  # that share a transaction
BATCH_BYTES = 32 << 20  # and how much of a disk they may take until then


class ImageWriter:
    """Collects drafts, has rows written for them, and only then gives them their keys.

    Drafts that were not kept are gone at the end of the `with` block, which must hold what makes
    the dataset ready as well.
    """

    def __init__(
        self,
        dataset: DatasetRecord,
        owner: str,
        images: ImageStore,
        artifacts: ArtifactStore,
        scratch: Path,
    ) -> None:
        self._dataset = dataset
        self._owner = owner
        self._images = images
        self._artifacts = artifacts
        self._scratch = scratch
        self._drafts: dict[str, Draft] = {}  # by SHA-256
        self._bytes = 0
        self._open: set[Draft] = set()
        self._kept: list[str] = []  # SHA-256

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for draft in (*self._open, *self._drafts.values()):
            draft.discard()
        if kind is not None and self._kept:
            # The dataset may have been deleted between its rows and its files.
            with suppress(CoreError):  # if the database is away, the housekeeper looks
                self._images.suspect(self._dataset.tenant, self._kept)

    def draft(self) -> Draft:
        """A file for the next image; it is given back by `keep` or `drop`.

        Raises:
            StorageFull, StorageUnavailable: there can be none.
        """
        draft = self._artifacts.draft(images_prefix(self._dataset.tenant), self._scratch)
        self._open.add(draft)
        return draft

    def drop(self, draft: Draft) -> None:
        """The image is not wanted."""
        self._open.discard(draft)
        draft.discard()

    def keep(self, draft: Draft) -> None:
        """The image is whole and wanted.

        Raises:
            LeaseLost: another process unpacks the dataset.
            StorageFull, StorageUnavailable: a store did not take it.
        """
        if draft.sha256 in self._drafts:
            self.drop(draft)  # another file of the same content
            return
        draft.close()
        self._open.discard(draft)
        self._drafts[draft.sha256] = draft
        self._bytes += draft.size
        if len(self._drafts) >= BATCH_FILES or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Keep those that are waiting; raises as `keep` does."""
        sizes = {sha256: draft.size for sha256, draft in self._drafts.items()}
        if not sizes:
            return
        self._images.hold(self._dataset, self._owner, sizes)
        self._kept += sizes
        for draft in self._drafts.values():
            self._images.keep(self._dataset, draft)
        self._drafts.clear()
        self._bytes = 0

    def finish(self) -> None:
        """Return when everything kept survives a loss of power; raises as `keep` does."""
        self.flush()
        # Last of all: a disk that is being synced delays whoever makes files.
        self._artifacts.sync_files(blob_key(self._dataset.tenant, name) for name in self._kept)
