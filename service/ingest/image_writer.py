"""`ImageWriter` stores the images of one dataset in batches."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sharpzo_core.errors import CoreError
from sharpzo_core.records.datasets import DatasetRecord, blob_key, images_prefix
from sharpzo_core.storage.artifact_store import ArtifactStore, Draft
from sharpzo_core.stores.image_store import ImageStore

BATCH_FILES = 256  # per transaction
BATCH_BYTES = 32 << 20  # of drafts on disk per transaction


class ImageWriter:
    """Collects drafts, writes their rows, and only then moves them to their keys.

    The end of the `with` block removes all other drafts. The dataset must be marked as ready
    inside the block.
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
        self._stored: list[str] = []  # SHA-256

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for draft in (*self._open, *self._drafts.values()):
            draft.discard()
        if kind is not None and self._stored:
            # The dataset may have been deleted between its rows and its files.
            with suppress(CoreError):  # if the database is down, housekeeping finds them
                self._images.suspect(self._dataset.tenant, self._stored)

    def draft(self) -> Draft:
        """Open a file for the next image; pass it to `add` or `discard` afterwards.

        Raises:
            StorageFull, StorageUnavailable: the file cannot be created.
        """
        draft = self._artifacts.draft(images_prefix(self._dataset.tenant), self._scratch)
        self._open.add(draft)
        return draft

    def discard(self, draft: Draft) -> None:
        self._open.discard(draft)
        draft.discard()

    def add(self, draft: Draft) -> None:
        """Store a complete image.

        Raises:
            LeaseLost: another process is unpacking the dataset.
            StorageFull, StorageUnavailable: a store rejected it.
        """
        if draft.sha256 in self._drafts:
            self.discard(draft)  # a duplicate
            return
        draft.close()
        self._open.discard(draft)
        self._drafts[draft.sha256] = draft
        self._bytes += draft.size
        if len(self._drafts) >= BATCH_FILES or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        sizes = {sha256: draft.size for sha256, draft in self._drafts.items()}
        if not sizes:
            return
        self._images.hold(self._dataset, self._owner, sizes)
        self._stored += sizes
        for draft in self._drafts.values():
            self._images.keep(self._dataset, draft)
        self._drafts.clear()
        self._bytes = 0

    def finish(self) -> None:
        self.flush()
        # Synced at the end, because a sync delays all other writes to the disk.
        self._artifacts.sync_files(blob_key(self._dataset.tenant, name) for name in self._stored)
