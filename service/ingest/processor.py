"""Turns uploaded archives into ready datasets, in a background thread.

`archive_reader` reads an archive; this module decides which process reads it and when, and records
the outcome. A failed dataset leaves no files behind.
"""

import hashlib
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from service.ingest.archive_reader import ArchiveReader, Content, Unusable, Walk
from service.ingest.decoding.decoders import Decoders, DecodeRules, default_processes
from service.ingest.image_writer import ImageWriter
from service.ingest.uploads import Uploads
from sharpzo_core.errors import (
    CoreError,
    LeaseLost,
    NotFound,
    StateConflict,
    StorageUnavailable,
)
from sharpzo_core.logging import log_context
from sharpzo_core.periodic import Periodic
from sharpzo_core.records.datasets import dataset_prefix, manifest_key, sheet_key
from sharpzo_core.settings import Settings
from sharpzo_core.storage.archives import sniff, walk
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.dataset_leases import DatasetLeases
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.image_store import ImageStore
from sharpzo_engine.errors import EngineError

logger = logging.getLogger(__name__)

UPLOAD_FOLDER = "folder"  # key in a dataset's `source`: the folder of its archive


class Ingest:
    """Processes uploads one after the other; `close` waits for the current image only.

    Several API processes may share the database: each has its own leases, and takes over the
    uploads of a process that died.
    """

    def __init__(
        self,
        *,
        datasets: DatasetStore,
        leases: DatasetLeases,
        artifacts: ArtifactStore,
        images: ImageStore,
        uploads: Uploads,
        settings: Settings,
    ) -> None:
        self._datasets = datasets
        self._leases = leases
        self._artifacts = artifacts
        self._uploads = uploads
        self._images = images
        self._scratch = settings.cache_dir / "drafts"
        self._rules = DecodeRules(
            settings.decode_processes or default_processes(),
            settings.decode_seconds,
            settings.max_image_pixels,
        )
        self._leased: set[str] = set()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._heartbeat = Periodic("dataset leases", settings.heartbeat_seconds, self._renew)
        self._sweeper = Periodic("dataset sweeper", settings.sweep_seconds, self._sweep)

    def start(self) -> None:
        """Start renewing leases and taking over unfinished uploads of earlier processes."""
        self._heartbeat.start()
        self._sweeper.start()

    def submit(self, dataset_id: str) -> None:
        """Process a dataset's upload in the background; this process holds its lease."""
        self._leased.add(dataset_id)
        self._pool.submit(copy_context().run, self._process, dataset_id)

    def forget(self, dataset_id: str) -> None:
        """Remove the files of a deleted dataset; of a large one, some images are removed later."""
        self._uploads.discard(dataset_id)
        self._remove_files(dataset_id)
        self._images.sweep()

    def close(self) -> None:
        """Stop; unfinished datasets stay `processing` for another process or the next start."""
        self._stopping.set()
        self._sweeper.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._heartbeat.stop()
        try:
            self._leases.release(self._leased)
        except CoreError as error:
            logger.info(
                "dataset leases are not released and will expire: %s",
                error,
                extra={"action": "ingest_lease_kept"},
            )

    def _renew(self) -> None:
        self._uploads.touch()
        asked = self._leased.copy()
        self._leased -= asked - self._leases.renew(asked)

    def _sweep(self) -> None:
        for dataset_id in self._leases.abandoned():
            if dataset_id not in self._leased:
                self._take_over(dataset_id)
        self._uploads.remove_strays(self._datasets.processing_ids())
        while self._images.sweep() and not self._stopping.is_set():
            pass

    def _take_over(self, dataset_id: str) -> None:
        dataset = self._datasets.get(dataset_id)
        # Only a process that shares the folder knows whether the archive is lost.
        if dataset.source.get(UPLOAD_FOLDER, self._uploads.identity) != self._uploads.identity:
            return
        if not self._leases.take(dataset_id):
            return
        logger.warning(
            "taking over the processing of %s",
            dataset_id,
            extra={"action": "ingest_taken_up", "dataset_id": dataset_id},
        )
        if self._uploads.path(dataset_id).exists():
            self.submit(dataset_id)
        else:
            message = "the service stopped before the upload was complete (upload it again)"
            self._fail(dataset_id, "upload_lost", message)

    def _process(self, dataset_id: str) -> None:
        with log_context(dataset_id=dataset_id):
            self._attempt(dataset_id)

    def _attempt(self, dataset_id: str) -> None:
        try:
            if self._leases.renew([dataset_id]):
                self._run(dataset_id)
                self._uploads.discard(dataset_id)
        except _Stopped:
            return  # its lease is released by `close`
        except StateConflict as error:
            logger.info(
                "%s is no longer processed here: %s",
                dataset_id,
                error,
                extra={"action": "ingest_lease_lost"},
            )
            self._clean_up_if_deleted(dataset_id)
        except StorageUnavailable as error:
            # The archive is kept: after the lease expires, some process retries.
            logger.warning(
                "processing of %s is postponed: %s",
                dataset_id,
                error,
                extra={"action": "ingest_waits"},
            )
        except Exception:
            # No caller waits for this thread, so the error is only logged.
            logger.exception(
                "processing of %s failed", dataset_id, extra={"action": "ingest_failed"}
            )
        self._leased.discard(dataset_id)

    def _run(self, dataset_id: str) -> None:
        """Make the dataset ready or failed.

        Raises:
            StateConflict: it is no longer processed here.
            StorageUnavailable: a store does not answer.
        """
        try:
            self._read(dataset_id)
        except (_Stopped, StateConflict, StorageUnavailable):
            raise
        except NotFound:
            self._remove_files(dataset_id)  # deleted meanwhile
        except Unusable as error:
            self._fail(dataset_id, error.code, str(error), error.report)
        except (CoreError, EngineError) as error:
            self._fail(dataset_id, error.code, str(error))
        except Exception:
            # A bug must end as the dataset's error, not as an endless retry.
            logger.exception(
                "processing of %s failed", dataset_id, extra={"action": "ingest_failed"}
            )
            self._fail(dataset_id, "internal_error", "the dataset could not be processed")

    def _read(self, dataset_id: str) -> None:
        dataset = self._datasets.get(dataset_id)
        owner = self._leases.owner
        with ImageWriter(dataset, owner, self._images, self._artifacts, self._scratch) as writer:
            with Decoders(self._rules) as decoders:
                reader = ArchiveReader(self._walk(dataset_id), decoders, writer)
                content = reader.read() if dataset.labelled else reader.read_unlabelled()
            self._publish(dataset_id, content)

    def _publish(self, dataset_id: str, content: Content) -> None:
        self._artifacts.put_bytes(sheet_key(dataset_id), content.sheet)
        self._artifacts.put_bytes(manifest_key(dataset_id), content.manifest)
        self._datasets.mark_ready(
            dataset_id,
            classes=content.class_names,
            counts=content.counts,
            sha256=hashlib.sha256(content.manifest).hexdigest(),
            report=content.report,
            owner=self._leases.owner,
            shares_images=True,
        )
        logger.info("%s is ready", dataset_id, extra={"action": "dataset_ready"})

    def _walk(self, dataset_id: str) -> Walk:
        """Iterate over the upload's members while the service runs and holds the lease."""
        path = self._uploads.path(dataset_id)
        kind = sniff(path)
        tick = partial(self.check_running, dataset_id)
        return lambda: walk(path, kind, tick=tick, folders=True)

    def _fail(
        self, dataset_id: str, code: str, message: str, report: Mapping[str, Any] | None = None
    ) -> None:
        # The row first: without the lease, another process owns the files.
        with suppress(NotFound):  # deleted meanwhile
            self._datasets.mark_failed(dataset_id, code, message, report, owner=self._leases.owner)
            logger.info(
                "%s failed: %s", dataset_id, code, extra={"action": "dataset_failed", "code": code}
            )
        self._remove_files(dataset_id)
        self._images.sweep()

    def _clean_up_if_deleted(self, dataset_id: str) -> None:
        try:
            self._datasets.get(dataset_id)
        except NotFound:
            self._remove_files(dataset_id)

    def _remove_files(self, dataset_id: str) -> None:
        self._artifacts.delete_prefix(dataset_prefix(dataset_id))

    def check_running(self, dataset_id: str) -> None:
        """Check that this process should continue with the dataset.

        Raises:
            LeaseLost: another process is unpacking it, or it was deleted.
        """
        if self._stopping.is_set():
            raise _Stopped
        if dataset_id not in self._leased:
            raise LeaseLost


class _Stopped(Exception):  # noqa: N818 - not an error
    """The service is shutting down."""
