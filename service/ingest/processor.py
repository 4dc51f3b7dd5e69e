"""From an uploaded archive to a ready dataset, in a background thread.

`archive_reader` reads one; this module decides who reads it and when, and what becomes of the
dataset. One that fails leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from service.ingest.archive_reader import ArchiveReader, Unusable
from service.ingest.decoding.decoders import Decoders, DecodeRules, default_processes
from service.ingest.image_writer import ImageWriter
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
from sharpzo_core.storage.archives import sniff, walk
from sharpzo_engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.ingest.archive_reader import Content, Walk
    from service.ingest.uploads import Uploads
    from sharpzo_core.records.datasets import DatasetRecord
    from sharpzo_core.settings import Settings
    from sharpzo_core.storage.artifact_store import ArtifactStore
    from sharpzo_core.stores.dataset_leases import DatasetLeases
    from sharpzo_core.stores.dataset_store import DatasetStore
    from sharpzo_core.stores.image_store import ImageStore

logger = logging.getLogger(__name__)

UPLOAD_FOLDER = "folder"  # in a dataset's `source`: the folder that its archive is in


class Ingest:
    """Processes uploads one after the other; `close` waits for the current image only.

    Several API processes may share the database: each works under leases of its own, and takes up
    what a process that died has left.
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
        self._held: set[str] = set()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._heartbeat = Periodic("dataset leases", settings.heartbeat_seconds, self._renew)
        self._sweeper = Periodic("dataset sweeper", settings.sweep_seconds, self._sweep)

    def start(self) -> None:
        """Begin to look after leases, and go on with what earlier processes left unfinished."""
        self._heartbeat.start()
        self._sweeper.start()

    def submit(self, dataset_id: str) -> None:
        """Process the upload of a dataset that is leased here, in the background."""
        self._held.add(dataset_id)
        self._pool.submit(copy_context().run, self._process, dataset_id)

    def forget(self, dataset_id: str) -> None:
        """Remove the files of a dataset that was deleted.

        Of a large one, some of the images go later.
        """
        self._uploads.discard(dataset_id)
        self._remove_files(dataset_id)
        self._images.sweep()

    def close(self) -> None:
        """Stop; what is unfinished stays `processing`, for another process or the next one."""
        self._stopping.set()
        self._sweeper.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._heartbeat.stop()
        try:
            self._leases.release(self._held)
        except CoreError as error:
            logger.info(
                "leases run out by themselves: %s", error, extra={"action": "ingest_lease_kept"}
            )

    def _renew(self) -> None:
        self._uploads.touch()
        asked = self._held.copy()
        self._held -= asked - self._leases.renew(asked)

    def _sweep(self) -> None:
        for dataset_id in self._leases.abandoned():
            if dataset_id not in self._held:
                self._take_up(dataset_id)
        self._uploads.remove_strays(self._datasets.processing_ids())
        while self._images.sweep() and not self._stopping.is_set():
            pass

    def _take_up(self, dataset_id: str) -> None:
        dataset = self._datasets.get(dataset_id)
        # Only a process that shares the folder can tell whether the archive is lost.
        if dataset.source.get(UPLOAD_FOLDER, self._uploads.identity) != self._uploads.identity:
            return
        if not self._leases.take(dataset_id):
            return
        logger.warning(
            "taking up %s",
            dataset_id,
            extra={"action": "ingest_taken_up", "dataset_id": dataset_id},
        )
        if self._uploads.path(dataset_id).exists():
            self.submit(dataset_id)
        else:
            message = "the service stopped before the upload was safe (upload it again)"
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
            logger.info("%s: %s", dataset_id, error, extra={"action": "ingest_lease_lost"})
            self._clean_up_if_deleted(dataset_id)
        except StorageUnavailable as error:
            # The archive is kept: when the lease has run out, some process tries again.
            logger.warning("%s must wait: %s", dataset_id, error, extra={"action": "ingest_waits"})
        except Exception:
            # Nobody waits for this thread, and nothing more can be done than to tell.
            logger.exception(
                "processing of %s failed", dataset_id, extra={"action": "ingest_failed"}
            )
        self._held.discard(dataset_id)

    def _run(self, dataset_id: str) -> None:
        """Bring the dataset out of `processing`.

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
            # A defect must become the dataset's error.
            logger.exception(
                "processing of %s failed", dataset_id, extra={"action": "ingest_failed"}
            )
            self._fail(dataset_id, "internal_error", "the dataset could not be processed")

    def _read(self, dataset_id: str) -> None:
        dataset = self._datasets.get(dataset_id)
        with self._keeper(dataset) as keeper:
            with Decoders(self._rules) as decoders:
                intake = ArchiveReader(self._walk(dataset_id), decoders, keeper)
                content = intake.read() if dataset.labelled else intake.read_unlabelled()
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

    def _keeper(self, dataset: DatasetRecord) -> ImageWriter:
        owner = self._leases.owner
        return ImageWriter(dataset, owner, self._images, self._artifacts, self._scratch)

    def _walk(self, dataset_id: str) -> Walk:
        """The members of the upload, as long as the service runs and holds the lease."""
        path = self._uploads.path(dataset_id)
        kind = sniff(path)
        tick = partial(self.check_running, dataset_id)
        return lambda: walk(path, kind, tick=tick, folders=True)

    def _fail(
        self, dataset_id: str, code: str, message: str, report: Mapping[str, Any] | None = None
    ) -> None:
        # The row first: who has lost the lease must not touch the files of another process.
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
        """Return if the dataset is still to be processed here.

        Raises:
            LeaseLost: another process unpacks it, or it was deleted.
        """
        if self._stopping.is_set():
            raise _Stopped
        if dataset_id not in self._held:
            raise LeaseLost


class _Stopped(Exception):  # noqa: N818 - not a fault
    """The service is about to stop."""
