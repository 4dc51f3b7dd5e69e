"""The check before tuning: reports every problem of a dataset at once.

`inspect` checks a layout and the facts about its images; `examine` collects those facts from an
image's bytes. Nothing here loads torch or reads a file.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from sharpzo_engine.data.diagnostics import Finding, errors_among, finding
from sharpzo_engine.data.images import MAX_IMAGE_PIXELS, decode_image
from sharpzo_engine.data.layout import SPLITS, Entry, Form, Layout
from sharpzo_engine.errors import ImageError

FORMAT = "sharpzo-preflight/1"
USUAL_SHOTS = 16  # a class with fewer training images causes a warning
MAX_NAME_TOKENS = 70  # CLIP's 77 without SOS, "a photo of a", "." and EOT
MIN_SIDE = 32  # pixels; CLIP looks at 224
MAX_IMBALANCE = 10.0  # largest class by smallest
LISTED_CLASSES = 1000  # at most, in the JSON
LISTED_UNREADABLE = 100

CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class ImageFacts:
    """The facts about one image file."""

    path: str  #: as the layout has it
    sha256: str  #: of the file
    width: int  #: pixels, upright; 0 if it cannot be decoded
    height: int
    bytes: int  #: of the file
    error: ImageError | None = None  #: why it cannot be used
    format: str | None = None  #: JPEG, PNG or WEBP


def examine(
    path: str, data: bytes, max_pixels: int = MAX_IMAGE_PIXELS
) -> tuple[ImageFacts, Image.Image | None]:
    """Decode an image; returns its facts, and the upright RGB image if it is usable.

    Args:
        path: as the layout has it.
        data: the file's content.
        max_pixels: a larger image is an error.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        image = decode_image(data, max_pixels)
    except ImageError as error:
        return ImageFacts(path, sha256, 0, 0, len(data), error), None
    facts = ImageFacts(path, sha256, image.width, image.height, len(data), None, image.format)
    return facts, image


@dataclass(frozen=True)
class Spread:
    """The smallest, median and largest of a list of numbers."""

    min: int
    median: float
    max: int

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> Spread:
        """Summarise a list of at least one number."""
        return cls(min(numbers), statistics.median(numbers), max(numbers))


@dataclass(frozen=True)
class ImageSizes:
    """Sizes and formats of the images that can be decoded."""

    images: int
    width: Spread  #: pixels
    height: Spread  #: pixels
    bytes: Spread  #: of the files
    formats: Mapping[str, int]  #: JPEG, PNG, WEBP -> images

    @classmethod
    def from_facts(cls, facts: Iterable[ImageFacts]) -> ImageSizes | None:
        """Summarise the images without errors; None if there are none."""
        good = [item for item in facts if item.error is None]
        if not good:
            return None
        return cls(
            len(good),
            Spread.from_numbers([item.width for item in good]),
            Spread.from_numbers([item.height for item in good]),
            Spread.from_numbers([item.bytes for item in good]),
            dict(sorted(Counter(item.format or "unknown" for item in good).items())),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Preflight:
    """What a dataset contains, and its problems."""

    classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]  #: split -> class -> images
    findings: tuple[Finding, ...]  #: errors first
    form: Form
    images: int  #: images that the splits list
    examined: int  #: images among them whose files were read
    bytes: int  #: total size of the files that were read
    skipped: int  #: files that are not images
    sizes: ImageSizes | None  #: None if no image was decoded
    unreadable: tuple[ImageFacts, ...]  #: images that cannot be used

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Problems that make the dataset unusable for tuning."""
        return errors_among(self.findings)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Problems that do not prevent tuning."""
        return tuple(item for item in self.findings if item.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether the dataset can be tuned on."""
        return not self.errors

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values. Lists are truncated; counts cover everything.

        Keys: format, ok, form, images, examined, bytes, skipped, errors, warnings (numbers of
        findings), findings [{severity, code, message, fix, count, examples}], splits {split:
        images}, classes {total, listed: [{name, train, val, test}]}, sizes (or null), unreadable
        {total, listed: [{file, code, reason}]}.
        """
        return {
            "format": FORMAT,
            "ok": self.ok,
            "form": str(self.form),
            "images": self.images,
            "examined": self.examined,
            "bytes": self.bytes,
            "skipped": self.skipped,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [item.as_json() for item in self.findings],
            "splits": {split: sum(self.counts[split].values()) for split in SPLITS},
            "classes": {"total": len(self.classes), "listed": self._class_rows()},
            "sizes": None if self.sizes is None else self.sizes.as_json(),
            "unreadable": {"total": len(self.unreadable), "listed": self._unreadable_rows()},
        }

    def _class_rows(self) -> list[dict[str, Any]]:
        return [
            {"name": name} | {split: self.counts[split][name] for split in SPLITS}
            for name in self.classes[:LISTED_CLASSES]
        ]

    def _unreadable_rows(self) -> list[dict[str, str]]:
        return [
            {"file": item.path, "code": item.error.code, "reason": str(item.error)}
            for item in self.unreadable[:LISTED_UNREADABLE]
            if item.error is not None
        ]


def inspect(
    layout: Layout,
    images: Mapping[str, ImageFacts],
    *,
    shots: int | None = None,
    count_tokens: CountTokens | None = None,
) -> Preflight:
    """Check a dataset; problems are returned as findings, never raised.

    Args:
        layout: from `detect_layout` or `read_known`.
        images: path -> facts; images without facts were not read and are not checked.
        shots: training images needed per class; a class with fewer is an error. None only warns
            about classes with fewer than the usual number.
        count_tokens: returns the number of tokens of a class name; None skips this check.
    """
    known = {entry.path: images[entry.path] for entry in layout.entries() if entry.path in images}
    unreadable = tuple(item for item in known.values() if item.error is not None)
    found = [
        *layout.findings,
        *_tokens(layout.class_names, count_tokens),
        *_unreadable(unreadable),
        *_training_counts(layout, shots),
        *_split_counts(layout),
        *_duplicates(layout, known),
        *_tiny(known.values()),
    ]
    return Preflight(
        classes=layout.class_names,
        counts=layout.counts(),
        findings=tuple(sorted(found, key=lambda item: item.severity)),  # errors first
        form=layout.form,
        images=sum(len(layout.splits[split]) for split in SPLITS),
        examined=len(known),
        bytes=sum(item.bytes for item in known.values()),
        skipped=layout.skipped,
        sizes=ImageSizes.from_facts(known.values()),
        unreadable=unreadable,
    )


def _tokens(names: Sequence[str], count_tokens: CountTokens | None) -> Iterator[Finding]:
    if count_tokens is None:
        return
    counts = {name: count_tokens(name) for name in names}
    empty = [repr(name) for name, count in counts.items() if count == 0]
    if empty:
        message = "class names have no tokens"
        yield finding("class_name_without_tokens", message, "rename them, using words", empty)
    long = [f"{n[:40]!r} ({c} tokens)" for n, c in counts.items() if c > MAX_NAME_TOKENS]
    if long:
        message = f"class names have more than {MAX_NAME_TOKENS} tokens"
        yield finding("class_name_too_long", message, "use shorter names", long)


def _unreadable(unreadable: Sequence[ImageFacts]) -> Iterator[Finding]:
    if unreadable:
        shown = [f"{item.path}: {_bare(item.error)}" for item in unreadable]
        fix = "save them again as JPEG, PNG or WebP, or remove them"
        yield finding("image_unreadable", "images cannot be decoded", fix, shown)


def _bare(error: ImageError | None) -> str:
    """The message without the fix."""
    return str(error).partition(" (")[0]


def _training_counts(layout: Layout, shots: int | None) -> Iterator[Finding]:
    if layout.form is Form.TEST_FOLDERS:
        return
    counts = Counter(entry.label for entry in layout.splits["train"])
    # A class without images is reported as `empty_class` already.
    some = {layout.class_names[label]: counts[label] for label in sorted(counts)}
    wanted = USUAL_SHOTS if shots is None else shots
    short = {name: count for name, count in some.items() if count < wanted}
    if short:
        shown = [f"{name!r} has {count}" for name, count in short.items()]
        fix = f"add images, or lower shots to {min(short.values())}"
        code = "few_images" if shots is None else "too_few_images"
        yield finding(code, f"classes have fewer than {wanted} training images", fix, shown)
    if some and max(some.values()) > MAX_IMBALANCE * min(some.values()):
        most, least = max(some, key=some.__getitem__), min(some, key=some.__getitem__)
        shown = [f"{most!r} has {some[most]} training images", f"{least!r} has {some[least]}"]
        fix = "balance them: tuning uses equally many images per class, accuracy counts all images"
        yield finding("unbalanced_classes", "class sizes are unbalanced", fix, shown, count=1)


def _split_counts(layout: Layout) -> Iterator[Finding]:
    if layout.form is Form.TEST_FOLDERS or not layout.splits["train"]:
        return
    if not layout.splits["val"]:
        fix = "add val/; otherwise a quarter of the shots is held out"
        yield finding("no_val_split", "there are no validation images", fix)
    if not layout.splits["test"]:
        fix = "add test/; otherwise accuracy is measured on validation images"
        yield finding("no_test_split", "there are no test images", fix)
    trained = {entry.label for entry in layout.splits["train"]}
    for split in ("val", "test"):
        present = {entry.label for entry in layout.splits[split]}
        lacking = [repr(layout.class_names[label]) for label in sorted(trained - present)]
        if present and lacking:
            message = f"classes have no {split} images"
            yield finding("class_missing_in_split", message, "add images", lacking)


def _duplicates(layout: Layout, known: Mapping[str, ImageFacts]) -> Iterator[Finding]:
    """Images with equal bytes; of files that were not read, paths that are listed twice."""
    groups: dict[str, list[tuple[str, Entry]]] = defaultdict(list)
    for split in SPLITS:
        for entry in layout.splits[split]:
            facts = known.get(entry.path)
            # A file that cannot be read has no hash.
            groups[(facts and facts.sha256) or entry.path].append((split, entry))
    twice = [group for group in groups.values() if len(group) > 1]
    across = [group for group in twice if len({split for split, _ in group}) > 1]
    within = [group for group in twice if len({split for split, _ in group}) < len(group)]
    labels = [group for group in twice if len({entry.label for _, entry in group}) > 1]
    for code, message, fix, kind in (
        ("duplicates_across_splits", "images are in several splits", _LEAK, across),
        ("duplicates_within_split", "images are repeated within a split", _REPEAT, within),
        ("duplicates_across_classes", "images belong to several classes", _CLASH, labels),
    ):
        if kind:
            yield finding(code, message, fix, [_paths(group) for group in kind])


_LEAK = "keep each in one split; otherwise accuracy is overestimated"
_REPEAT = "remove the copies"
_CLASH = "keep each in one class"


def _paths(group: Sequence[tuple[str, Entry]]) -> str:
    return " = ".join(dict.fromkeys(entry.path for _, entry in group))


def _tiny(facts: Iterable[ImageFacts]) -> Iterator[Finding]:
    tiny = [
        f"{PurePosixPath(item.path)} ({item.width} x {item.height})"
        for item in facts
        if item.error is None and min(item.width, item.height) < MIN_SIDE
    ]
    if tiny:
        message = f"images are smaller than {MIN_SIDE} pixels"
        yield finding("tiny_images", message, "use larger versions if you have them", tiny)
