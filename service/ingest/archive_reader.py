"""Reads a dataset's archive in two passes: first the names, then every image.

The names give the layout. Child processes decode several images at a time while the archive is
read, and usable images are stored under their hash. The result is a manifest, a report and a
contact sheet.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from service.ingest.decoding.decoders import Decoders
from service.ingest.image_writer import ImageWriter
from sharpzo_core.errors import CoreError
from sharpzo_core.records.datasets import SPLITS, UNLABELLED
from sharpzo_core.storage.archives import Member
from sharpzo_core.storage.artifact_store import Draft
from sharpzo_engine.data.contact_sheet import MAX_CLASSES, PER_CLASS, THUMBNAIL, contact_sheet
from sharpzo_engine.data.images import Inspection
from sharpzo_engine.data.layout_detection import Layout, detect_layout, list_images
from sharpzo_engine.data.preflight import ImageFacts, ImageSizes, Preflight, inspect
from sharpzo_engine.errors import DatasetError, ImageError

MAX_JSON_BYTES = 16 << 20  # of classnames.json and split files together
MAX_JSON_ITEMS = 600_000  # brackets and commas of one file: about 100,000 rows of a split file
LISTED_UNREADABLE = 100
SHEET_ROWS = 10  # of the contact sheet of a dataset without classes
_SHEET_QUALITY = 85
_METADATA_DEPTH = 2  # maximum parts in the path of a JSON file that defines the layout

Walk = Callable[[], Iterator[Member]]  #: Each call starts again at the first member


class Unusable(CoreError):  # noqa: N818 - named after what happened
    """The archive is intact, but its content cannot be used for tuning."""

    def __init__(self, code: str, message: str, report: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        self.report = report


@dataclass(frozen=True)
class Content:
    class_names: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    manifest: bytes
    report: Mapping[str, Any]
    sheet: bytes  #: JPEG


@dataclass
class ArchiveReader:
    walk: Walk
    decoders: Decoders
    writer: ImageWriter
    facts: dict[str, ImageFacts] = field(default_factory=dict)  #: By path
    thumbnails: dict[str, Image.Image] = field(default_factory=dict)  #: By path
    storing: bool = True  #: False once the dataset is known to be unusable

    def read(self) -> Content:
        """Read a labelled dataset.

        Raises:
            Unusable: with all findings.
            ArchiveError, DatasetError: the archive or its metadata cannot be read.
            CoreError: a store or the decoding processes failed.
        """
        layout = self._layout()
        shown = _shown(layout)
        self.storing = not any(finding.severity == "error" for finding in layout.findings)
        wanted = {entry.path for entry in layout.entries()}
        self._store_images(
            wanted, {path for paths in shown.values() for path in paths}, lenient=False
        )
        preflight = inspect(layout, self.facts)
        if not preflight.ok:
            raise _unusable(preflight)
        self.writer.finish()
        return Content(
            layout.class_names,
            layout.counts(),
            self._manifest(layout),
            preflight.as_json(),
            self._sheet(shown),
        )

    def read_unlabelled(self) -> Content:
        """Read every image in any folder; unusable ones are listed with their error.

        Raises:
            ArchiveError, DatasetError, CoreError: like `read`.
        """
        paths, skipped = list_images(member.path for member in self.walk() if not member.folder)
        shown = _shown_in_order(paths)
        self._store_images(
            set(paths), {path for row in shown.values() for path in row}, lenient=True
        )
        self.writer.finish()
        splits: dict[str, Any] = {split: [] for split in SPLITS}
        splits[UNLABELLED] = [_listed(self.facts[path]) for path in paths]
        counts = {UNLABELLED: {"": len(paths)}}
        report = self._report(skipped) | {"counts": counts}
        return Content((), counts, _as_manifest((), splits), report, self._sheet(shown))

    def _layout(self) -> Layout:
        names: list[str] = []
        texts: dict[str, bytes] = {}
        remaining = MAX_JSON_BYTES
        for member in self.walk():
            names.append(member.path)
            if _is_metadata(PurePosixPath(member.path)):
                texts[member.path] = _read_json(member, remaining)
                remaining -= len(texts[member.path])
        return detect_layout(names, lambda path: _text(path, texts[path]))

    def _store_images(self, wanted: set[str], shown: set[str], *, lenient: bool) -> None:
        """Decode the wanted images, with thumbnails of the shown ones, and store them.

        Unless `lenient`, storing stops at the first unusable image.
        """
        for member in self.walk():
            if member.path in wanted:
                draft = self.writer.draft()
                on_done = partial(self._record, member.path, draft, lenient)
                side = THUMBNAIL if member.path in shown else 0
                self.decoders.decode(_copied(member, draft), side, on_done)
        self.decoders.finish()

    def _record(
        self, path: str, draft: Draft, lenient: bool, found: Inspection | ImageError
    ) -> None:
        facts = _facts(path, draft, found)
        self.facts[path] = facts
        if not isinstance(found, ImageError) and found.thumbnail is not None:
            self.thumbnails[path] = found.thumbnail
        self.storing = self.storing and (lenient or facts.error is None)
        if self.storing and facts.error is None:
            self.writer.add(draft)
        else:
            self.writer.discard(draft)

    def _manifest(self, layout: Layout) -> bytes:
        splits = {
            split: [
                {"image": _stored_name(self.facts[entry.path]), "label": entry.label}
                | {"path": entry.path}
                for entry in entries
            ]
            for split, entries in layout.splits.items()
        }
        return _as_manifest(layout.class_names, splits)

    def _report(self, skipped: int) -> dict[str, Any]:
        good = [facts for facts in self.facts.values() if facts.error is None]
        bad = [facts for facts in self.facts.values() if facts.error is not None]
        sizes = ImageSizes.from_facts(good)
        return {
            "images": len(good),
            "bytes": sum(facts.bytes for facts in good),
            "skipped": skipped,
            "sizes": None if sizes is None else sizes.as_json(),
            "unreadable_images": len(bad),
            "unreadable": [
                {"file": facts.path, "reason": str(facts.error)}
                for facts in sorted(bad, key=lambda facts: facts.path)[:LISTED_UNREADABLE]
            ],
        }

    def _sheet(self, shown: Mapping[str, Sequence[str]]) -> bytes:
        rows = {
            name: [self.thumbnails[path] for path in paths if path in self.thumbnails]
            for name, paths in shown.items()
        }
        stream = io.BytesIO()
        contact_sheet(rows).save(stream, "JPEG", quality=_SHEET_QUALITY)
        return stream.getvalue()


def _shown(layout: Layout) -> dict[str, list[str]]:
    shown: dict[str, list[str]] = {name: [] for name in layout.class_names}
    visible = set(layout.class_names[:MAX_CLASSES])
    for entry in layout.splits["train"]:
        name = layout.class_names[entry.label]
        if name in visible and len(shown[name]) < PER_CLASS:
            shown[name].append(entry.path)
    return shown


def _shown_in_order(paths: Sequence[str]) -> dict[str, list[str]]:
    """Rows of the contact sheet without classes: range, such as "1 to 8" -> paths."""
    starts = range(0, min(len(paths), SHEET_ROWS * PER_CLASS), PER_CLASS)
    rows = {start: list(paths[start : start + PER_CLASS]) for start in starts}
    return {f"{start + 1} to {start + len(row)}": row for start, row in rows.items()}


def _copied(member: Member, draft: Draft) -> Iterator[bytes]:
    """Yield a member's bytes, and write them to the draft on the way."""
    for chunk in member.chunks():
        draft.write(chunk)
        yield chunk


def _facts(path: str, draft: Draft, found: Inspection | ImageError) -> ImageFacts:
    if isinstance(found, ImageError):
        return ImageFacts(path, draft.sha256, 0, 0, draft.size, found)
    size = (found.width, found.height)
    return ImageFacts(path, draft.sha256, *size, draft.size, None, found.format)


def _stored_name(facts: ImageFacts) -> str:
    return f"{facts.sha256}{PurePosixPath(facts.path).suffix.lower()}"


def _listed(facts: ImageFacts) -> dict[str, Any]:
    if facts.error is None:
        return {"image": _stored_name(facts), "path": facts.path}
    error = {"code": facts.error.code, "message": str(facts.error)}
    return {"image": None, "path": facts.path, "error": error}


def _as_manifest(class_names: Iterable[str], splits: Mapping[str, Any]) -> bytes:
    manifest = {"class_names": list(class_names), "splits": splits}
    return json.dumps(manifest, ensure_ascii=False, sort_keys=True).encode()


def _unusable(preflight: Preflight) -> Unusable:
    """One error for all findings; it has the images' own code if only images are at fault."""
    errors = preflight.errors
    codes = {facts.error.code for facts in preflight.unreadable if facts.error is not None}
    if any(finding.code != "image_unreadable" for finding in errors):
        code = DatasetError.code
    else:
        code = codes.pop() if len(codes) == 1 else ImageError.code
    return Unusable(code, "; ".join(map(str, errors)), preflight.as_json())


def _is_metadata(path: PurePosixPath) -> bool:
    """Whether the file may define the layout: it is in the root or in the single top folder."""
    known = path.name == "classnames.json" or path.match("split_zhou_*.json")
    return known and len(path.parts) <= _METADATA_DEPTH


def _read_json(member: Member, limit: int) -> bytes:
    """Read a small file into memory.

    Raises:
        DatasetError: it exceeds `limit`.
    """
    data = bytearray()
    for chunk in member.chunks():
        data += chunk
        if len(data) > limit:
            message = f"{member.path} is too large (use at most {MAX_JSON_BYTES} bytes of JSON)"
            raise DatasetError(message)
    return bytes(data)


def _text(path: str, data: bytes) -> str:
    """Decode a JSON file whose parsed size is bounded.

    Raises:
        DatasetError: it is not UTF-8, or has too many items.
    """
    if sum(map(data.count, (b"[", b"{", b","))) > MAX_JSON_ITEMS:
        raise DatasetError(f"{path} has more than {MAX_JSON_ITEMS} items (shorten it)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not UTF-8 (save it as UTF-8)") from None
