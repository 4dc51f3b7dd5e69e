"""`Finding`: one problem of a dataset, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]

EXAMPLES = 5  # listed per finding, at most

#: Code -> (severity, meaning). An error makes a dataset unusable; a warning does not.
CODES: dict[str, tuple[Severity, str]] = {
    "no_images": ("error", "there are no images"),
    "images_at_root": ("error", "there are images, but none of them in a class folder"),
    "no_training_images": ("error", "there are classes, but no training images"),
    "one_class": ("error", "there are fewer than two classes"),
    "empty_class": ("error", "a class has no training images"),
    "label_mismatch": ("error", "val or test has a class that train lacks, letter case included"),
    "duplicate_class_name": ("error", "two classes have the same name"),
    "class_names_alike": (
        "error",
        "class names differ only in letter case, spaces or Unicode form, which CLIP ignores",
    ),
    "class_name_invalid": (
        "error",
        "a class name is empty, too long or contains control characters",
    ),
    "class_name_without_tokens": ("error", "a class name has no tokens"),
    "class_name_too_long": ("error", "a class name does not fit into the text encoder's context"),
    "too_many_classes": ("error", "there are more classes than the service supports"),
    "metadata_invalid": ("error", "`classnames.json` or a list of images cannot be read"),
    "split_file_invalid": ("error", "the split file is not in CoOp's form or contradicts itself"),
    "split_file_images_missing": ("error", "images listed in the split are missing"),
    "image_unreadable": ("error", "an image is damaged, too large or in another format"),
    "too_few_images": ("error", "a class has fewer training images than the requested shots"),
    "few_images": ("warning", "a class has fewer training images than the usual 16 shots"),
    "unbalanced_classes": ("warning", "the largest class is more than ten times the smallest"),
    "no_val_split": (
        "warning",
        "there are no validation images; a part of the shots is held out instead",
    ),
    "no_test_split": (
        "warning",
        "there are no test images, so accuracy on unseen images is not measured",
    ),
    "class_missing_in_split": (
        "warning",
        "a class has no images in a split that other classes are in",
    ),
    "duplicates_across_splits": (
        "warning",
        "the same image is in two splits, so accuracy is overestimated",
    ),
    "duplicates_within_split": ("warning", "the same image is repeated within a split"),
    "duplicates_across_classes": ("warning", "the same image belongs to two classes"),
    "tiny_images": ("warning", "the shorter side of an image is less than 32 pixels"),
    "images_left_out": ("warning", "images are outside the class folders"),
    "unsupported_images": ("warning", "image files are not JPEG, PNG or WebP"),
    "classnames_unused": ("warning", "`classnames.json` lists folders that do not exist"),
    "unlike_published": ("warning", "a known dataset does not have the published sizes"),
    "several_split_files": ("warning", "there are several split files; the first one is used"),
}


@dataclass(frozen=True)
class Finding:
    """One problem, which may concern many files."""

    severity: Severity
    code: str  #: a key of `CODES`
    message: str  #: what is wrong, without examples
    fix: str  #: how to fix it
    count: int = 1  #: number of affected files, classes or groups
    examples: tuple[str, ...] = ()  #: the first few

    def __str__(self) -> str:
        """One line: the message, examples, and the fix in brackets."""
        more = self.count - len(self.examples)
        rest = f" and {more} more" if self.examples and more > 0 else ""
        listed = f": {', '.join(self.examples)}{rest}" if self.examples else ""
        return f"{self.message}{listed} ({self.fix})"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "examples": list(self.examples)}


def finding(
    code: str, message: str, fix: str, examples: Sequence[str] = (), count: int | None = None
) -> Finding:
    """Create a finding; its code decides the severity.

    Args:
        code: a key of `CODES`.
        message: what is wrong.
        fix: how to fix it.
        examples: everything affected; the first few are kept.
        count: number of affected items; None counts the examples (1 if there are none).
    """
    total = count if count is not None else len(examples) or 1
    return Finding(CODES[code][0], code, message, fix, total, tuple(examples[:EXAMPLES]))


def errors_among(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that make a dataset unusable."""
    return tuple(item for item in findings if item.severity == "error")


def split_hint(error: Exception) -> tuple[str, str]:
    """Split the text of an error, `message (fix)`, into its two parts."""
    message, _, fix = str(error).removesuffix(")").rpartition(" (")
    return message, fix
