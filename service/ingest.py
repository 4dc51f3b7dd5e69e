"""From an uploaded archive to a ready dataset, in a background thread.

The archive is walked twice: once for its names, which give the layout, and once for its images,
which are checked and stored under their hash. Nothing else is written, and a dataset that fails
leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from service.archives import ArchiveKind, Member, sniff, walk
from sharpzo_core.datasets import SPLITS, UNLABELLED, dataset_prefix, image_key, manifest_key
from sharpzo_core.errors import (
    CoreError,
    LeaseLost,
    NotFound,
    StateConflict,
    StorageUnavailable,
)
from sharpzo_core.periodic import Periodic
from sharpzo_engine.errors import DatasetError, EngineError, ImageError
from sharpzo_engine.images import decode_image
from sharpzo_engine.layout import Layout, list_images, read_layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.uploads import Uploads
    from sharpzo_core.artifact_store import ArtifactStore
    from sharpzo_core.dataset_leases import DatasetLeases
    from sharpzo_core.dataset_store import DatasetStore
    from sharpzo_core.settings import Settings

logger = logging.getLogger(__name__)

UPLOAD_FOLDER = "folder"  # in a dataset's `source`: the folder that its archive is in
MAX_JSON_BYTES = 32 << 20  # of classnames.json or a split file
LISTED_FAULTS = 5  # unreadable images that an error names
MAX_FAULTS = 100  # unreadable images after which reading on tells nobody anything
LISTED_DUPLICATES = 20
_METADATA_DEPTH = 2  # parts of the path of a JSON file that may belong to the layout


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
        uploads: Uploads,
        settings: Settings,
    ) -> None:
        self._datasets = datasets
        self._leases = leases
        self._artifacts = artifacts
        self._uploads = uploads
        self._max_pixels = settings.max_image_pixels
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
        self._pool.submit(self._process, dataset_id)

    def close(self) -> None:
        """Stop; what is unfinished stays `processing`, for another process or the next one."""
        self._stopping.set()
        self._sweeper.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._heartbeat.stop()
        try:
            self._leases.release(self._held)
        except CoreError as error:
            logger.info("leases run out by themselves: %s", error, extra={"action": "ingest"})

    def _renew(self) -> None:
        self._uploads.touch()
        asked = self._held.copy()
        self._held -= asked - self._leases.renew(asked)

    def _sweep(self) -> None:
        for dataset_id in self._leases.abandoned():
            if dataset_id not in self._held:
                self._take_up(dataset_id)
        self._uploads.remove_strays(self._datasets.processing_ids())

    def _take_up(self, dataset_id: str) -> None:
        dataset = self._datasets.get(dataset_id)
        # Only a process that shares the folder can tell whether the archive is lost.
        if dataset.source.get(UPLOAD_FOLDER, self._uploads.identity) != self._uploads.identity:
            return
        if not self._leases.take(dataset_id):
            return
        logger.warning("taking up %s", dataset_id, extra={"action": "ingest_taken_up"})
        if self._uploads.path(dataset_id).exists():
            self.submit(dataset_id)
        else:
            message = "the service stopped before the upload was safe (upload it again)"
            self._fail(dataset_id, "upload_lost", message)

    def _process(self, dataset_id: str) -> None:
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
            logger.warning("%s must wait: %s", dataset_id, error, extra={"action": "ingest"})
        except Exception:
            # Nobody waits for this thread, and nothing more can be done than to tell.
            logger.exception("processing of %s failed", dataset_id, extra={"action": "ingest"})
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
        except _Unreadable as error:
            self._fail(dataset_id, error.code, str(error), error.report)
        except (CoreError, EngineError) as error:
            self._fail(dataset_id, error.code, str(error))
        except Exception:
            # A defect must become the dataset's error.
            logger.exception("processing of %s failed", dataset_id, extra={"action": "ingest"})
            self._fail(dataset_id, "internal_error", "the dataset could not be processed")

    def _read(self, dataset_id: str) -> None:
        labelled = self._datasets.get(dataset_id).labelled
        reader = _Reader(self, dataset_id)
        result = reader.read() if labelled else reader.read_unlabelled()
        self._artifacts.sync(dataset_prefix(dataset_id))
        self._artifacts.put_bytes(manifest_key(dataset_id), result.manifest)
        self._datasets.mark_ready(
            dataset_id,
            classes=result.class_names,
            counts=result.counts,
            sha256=hashlib.sha256(result.manifest).hexdigest(),
            report=result.report,
            owner=self._leases.owner,
        )

    def _fail(
        self, dataset_id: str, code: str, message: str, report: dict[str, Any] | None = None
    ) -> None:
        # The row first: who has lost the lease must not touch the files of another process.
        with suppress(NotFound):  # deleted meanwhile
            self._datasets.mark_failed(dataset_id, code, message, report, owner=self._leases.owner)
        self._remove_files(dataset_id)

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

    def decode(self, data: bytes) -> None:
        """Check that an image can be used.

        Raises:
            ImageError: it cannot.
        """
        decode_image(data, self._max_pixels).close()

    def members(self, dataset_id: str, kind: ArchiveKind) -> Iterator[Member]:
        """Walk the upload, as long as the service runs."""
        for member in walk(self._uploads.path(dataset_id), kind):
            self.check_running(dataset_id)
            yield member

    def kind(self, dataset_id: str) -> ArchiveKind:
        """What the upload is."""
        return sniff(self._uploads.path(dataset_id))

    def store(self, dataset_id: str, image: str, data: bytes) -> None:
        """Keep an image under its hash."""
        self._artifacts.put_bytes(image_key(dataset_id, image), data, sync=False)


class _Stopped(Exception):  # noqa: N818 - not a fault
    """The service is about to stop."""


class _Unreadable(CoreError):  # noqa: N818 - named for the fact
    """Images of the dataset cannot be used."""

    code = "image_undecodable"

    def __init__(self, faults: list[tuple[str, ImageError]]) -> None:
        listed = "; ".join(f"{path}: {reason}" for path, reason in faults[:LISTED_FAULTS])
        more = len(faults) - LISTED_FAULTS
        rest = f"; and {more} more" if more > 0 else ""
        super().__init__(f"{len(faults)} images cannot be used: {listed}{rest}")
        self.report = {"unreadable": _listed(faults)}


@dataclass(frozen=True)
class _Result:
    """What reading an archive gives."""

    class_names: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    manifest: bytes
    report: dict[str, Any]


@dataclass
class _Reader:
    """Reads one archive, in two walks."""

    ingest: Ingest
    dataset_id: str
    images: dict[str, str] = field(default_factory=dict)  #: path -> stored name
    faults: list[tuple[str, ImageError]] = field(default_factory=list)
    size: int = 0  #: bytes of all images

    def read(self) -> _Result:
        kind = self.ingest.kind(self.dataset_id)
        layout = self._read_layout(kind)
        wanted = {entry.path for entries in layout.splits.values() for entry in entries}
        self._store_images(kind, wanted, MAX_FAULTS)
        if self.faults:
            raise _Unreadable(self.faults)
        manifest, report = self._manifest(layout), self._report(layout)
        return _Result(layout.class_names, layout.counts(), manifest, report)

    def read_unlabelled(self) -> _Result:
        """Take every image; one that cannot be used is listed with its error."""
        kind = self.ingest.kind(self.dataset_id)
        paths, skipped = list_images(m.path for m in self.ingest.members(self.dataset_id, kind))
        self._store_images(kind, set(paths))
        errors = dict(self.faults)
        listed = [
            {"image": None, "path": path, "error": _described(errors[path])}
            if path in errors
            else {"image": self.images[path], "path": path}
            for path in paths
        ]
        splits: dict[str, Any] = {split: [] for split in SPLITS} | {UNLABELLED: listed}
        counts = {UNLABELLED: {"": len(paths)}}  # of no class
        report = {
            "images": len(self.images),
            "bytes": self.size,
            "skipped": skipped,
            "counts": counts,
            "unreadable_images": len(self.faults),
            "unreadable": _listed(self.faults[:MAX_FAULTS]),
        }
        return _Result((), counts, _as_manifest((), splits), report)

    def _read_layout(self, kind: ArchiveKind) -> Layout:
        names: list[str] = []
        texts: dict[str, str] = {}
        for member in self.ingest.members(self.dataset_id, kind):
            names.append(member.path)
            if _is_metadata(PurePosixPath(member.path)):
                texts[member.path] = _text(member)
        return read_layout(names, texts.__getitem__)

    def _store_images(
        self, kind: ArchiveKind, wanted: set[str], max_faults: float = math.inf
    ) -> None:
        for member in self.ingest.members(self.dataset_id, kind):
            if member.path in wanted:
                self._store_image(member)
            if len(self.faults) >= max_faults:
                return

    def _store_image(self, member: Member) -> None:
        data = member.read()
        try:
            self.ingest.decode(data)
        except ImageError as error:
            self.faults.append((member.path, error))
            return
        suffix = PurePosixPath(member.path).suffix.lower()
        name = f"{hashlib.sha256(data).hexdigest()}{suffix}"
        self.ingest.store(self.dataset_id, name, data)
        self.images[member.path] = name
        self.size += len(data)

    def _manifest(self, layout: Layout) -> bytes:
        splits = {
            split: [
                {
                    "image": self.images[entry.path],
                    "label": entry.label,
                    "path": entry.path,
                }
                for entry in entries
            ]
            for split, entries in layout.splits.items()
        }
        return _as_manifest(layout.class_names, splits)

    def _report(self, layout: Layout) -> dict[str, Any]:
        duplicates = self._duplicates(layout)
        return {
            "images": len(self.images),
            "bytes": self.size,
            "skipped": layout.skipped,
            "counts": layout.counts(),
            "duplicates_across_splits": {
                "count": len(duplicates),
                "examples": duplicates[:LISTED_DUPLICATES],
            },
        }

    def _duplicates(self, layout: Layout) -> list[list[str]]:
        """Groups of paths in different splits that are the same bytes."""
        seen: dict[str, dict[str, str]] = defaultdict(dict)
        for split, entries in layout.splits.items():
            for entry in entries:
                seen[self.images[entry.path]].setdefault(split, entry.path)
        return [list(paths.values()) for paths in seen.values() if len(paths) > 1]


def _as_manifest(class_names: Sequence[str], splits: Mapping[str, Any]) -> bytes:
    manifest = {"class_names": list(class_names), "splits": splits}
    return json.dumps(manifest, ensure_ascii=False, sort_keys=True).encode()


def _described(error: ImageError) -> dict[str, str]:
    return {"code": error.code, "message": str(error)}


def _listed(faults: Sequence[tuple[str, ImageError]]) -> list[dict[str, str]]:
    return [{"file": path, "reason": str(error)} for path, error in faults]


def _is_metadata(path: PurePosixPath) -> bool:
    """Whether the layout may depend on the file's text, in the root or in the one top folder."""
    known = path.name == "classnames.json" or path.match("split_zhou_*.json")
    return known and len(path.parts) <= _METADATA_DEPTH


def _text(member: Member) -> str:
    data = member.read()
    if len(data) > MAX_JSON_BYTES:
        raise DatasetError(f"{member.path} is larger than {MAX_JSON_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{member.path} is not UTF-8 (save it as UTF-8)") from None
