"""`Finding`: one thing that is wrong or doubtful about a dataset, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]

EXAMPLES = 5  # that a finding lists at most

#: Code -> (severity, when it is found). An error makes a dataset unusable; a warning does not.
CODES: dict[str, tuple[Severity, str]] = {
    "no_images": ("error", "there is no image at all"),
    "images_at_root": ("error", "there are images, but none in a folder of a class"),
    "no_training_images": ("error", "classes are found, but no image to train on"),
    "one_class": ("error", "fewer than two classes are found"),
    "empty_class": ("error", "a class has no training image"),
    "label_mismatch": ("error", "val or test has a class that train lacks, letter case included"),
    "duplicate_class_name": ("error", "two classes have the same name"),
    "class_names_alike": (
        "error",
        "names that differ in letter case, spaces or Unicode form alone: CLIP reads them as one",
    ),
    "class_name_invalid": ("error", "a class name is empty, too long or holds control characters"),
    "class_name_without_tokens": ("error", "nothing of a class name is left after tokenising"),
    "class_name_too_long": ("error", "a class name does not fit into the text encoder's context"),
    "too_many_classes": ("error", "there are more classes than can be served"),
    "metadata_invalid": ("error", "`classnames.json` or a list of images cannot be read"),
    "split_file_invalid": ("error", "the split file is not in CoOp's form or contradicts itself"),
    "split_file_images_missing": ("error", "images that the split lists name are not there"),
    "image_unreadable": ("error", "an image is damaged, too large or in another format"),
    "too_few_images": ("error", "a class has fewer training images than the shots asked for"),
    "few_images": ("warning", "a class has fewer training images than the usual 16 shots"),
    "unbalanced_classes": ("warning", "the largest class is more than ten times the smallest"),
    "no_val_split": ("warning", "there are no validation images; some shots are held out instead"),
    "no_test_split": ("warning", "there are no test images, so nothing unseen is measured"),
    "class_missing_in_split": ("warning", "a class has no image in a split that others are in"),
    "duplicates_across_splits": ("warning", "the same image is in two splits: figures leak"),
    "duplicates_within_split": ("warning", "the same image is in one split more than once"),
    "duplicates_across_classes": ("warning", "the same image is under two classes"),
    "tiny_images": ("warning", "the shorter side of an image is under 32 pixels"),
    "images_left_out": ("warning", "images lie outside the folders of classes"),
    "unsupported_images": ("warning", "files look like images, but not JPEG, PNG or WebP"),
    "classnames_unused": ("warning", "`classnames.json` names folders that are not there"),
    "unlike_published": ("warning", "a dataset of the catalogue has other sizes than published"),
    "several_split_files": ("warning", "there are several split files; the first one is read"),
}


@dataclass(frozen=True)
class Finding:
    """One problem, however many files it concerns."""

    severity: Severity
    code: str  #: a key of `CODES`
    message: str  #: what is the matter, without examples
    fix: str  #: what to do about it
    count: int = 1  #: of files, classes or groups of them
    examples: tuple[str, ...] = ()  #: the first few

    def __str__(self) -> str:
        """One line: the message, examples, and the fix in brackets."""
        more = self.count - len(self.examples)
        rest = f" and {more} more" if self.examples and more > 0 else ""
        listed = f": {', '.join(self.examples)}{rest}" if self.examples else ""
        return f"{self.message}{listed} ({self.fix})"

    def as_json(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "severity": self.severity,
            "code": self.code,
            "message": self.message,
            "fix": self.fix,
            "count": self.count,
            "examples": list(self.examples),
        }


def finding(
    code: str, message: str, fix: str, examples: Sequence[str] = (), count: int | None = None
) -> Finding:
    """A finding of the severity that its code has.

    Args:
        code: a key of `CODES`.
        message: what is the matter.
        fix: what to do about it.
        examples: all that it concerns; the first few are kept.
        count: how many that are; none counts the examples, and is 1 without any.
    """
    total = count if count is not None else len(examples) or 1
    return Finding(CODES[code][0], code, message, fix, total, tuple(examples[:EXAMPLES]))


def errors_among(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Those that make a dataset unusable."""
    return tuple(item for item in findings if item.severity == "error")


def split_hint(error: Exception) -> tuple[str, str]:
    """Message and fix of an error that ends in `(fix)`."""
    message, _, fix = str(error).removesuffix(")").rpartition(" (")
    return message, fix
