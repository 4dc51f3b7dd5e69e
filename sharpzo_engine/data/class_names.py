"""Class names: where they come from, and checks of them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sharpzo_engine.data.diagnostics import Finding, finding, split_hint
from sharpzo_engine.errors import DatasetError

CLASS_NAMES_FILE = "classnames.json"  # folder -> class name
MAX_CLASSES = 10_000
MAX_CLASS_NAME = 200  # characters

ReadText = Callable[[str], str]


def read_names(
    paths: Sequence[str], read_text: ReadText
) -> tuple[Mapping[str, str], list[Finding]]:
    """Read `classnames.json`: folder -> name, and the problems of that file."""
    if CLASS_NAMES_FILE not in paths:
        return {}, []
    try:
        names = parse_json(read_text(CLASS_NAMES_FILE), CLASS_NAMES_FILE)
    except DatasetError as error:
        return {}, [finding("metadata_invalid", *split_hint(error))]
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        message = f"{CLASS_NAMES_FILE} must map folder names to class names (strings)"
        return {}, [
            finding("metadata_invalid", message, 'write it like {"shoes": "running shoes"}')
        ]
    known = {part for path in paths for part in path.split("/")[:-1]}
    return names, _unused_names(names, known)


def _unused_names(names: Mapping[str, str], known: set[str]) -> list[Finding]:
    unused = [repr(folder) for folder in names if folder not in known]
    if not unused:
        return []
    message, fix = f"{CLASS_NAMES_FILE} lists folders that do not exist", "correct their names"
    return [finding("classnames_unused", message, fix, unused)]


def parse_json(text: str, name: str) -> Any:  # noqa: ANN401 - the caller checks
    """Parse the text of a JSON file.

    Raises:
        DatasetError: it is not valid JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DatasetError(f"{name} is not valid JSON (fix the file)") from None


def display_name(folder: str, names: Mapping[str, str]) -> str:
    """The class name of a folder: from `classnames.json`, or its own name with spaces."""
    return names.get(folder, folder).replace("_", " ").strip()


def check_names(class_names: Sequence[str]) -> Iterator[Finding]:
    """Find problems of the class names themselves."""
    if len(class_names) > MAX_CLASSES:
        message = f"{len(class_names)} classes (at most {MAX_CLASSES})"
        yield finding("too_many_classes", message, "remove some", count=len(class_names))
    for name, count in Counter(class_names).items():
        if count > 1:
            message = f"{count} classes are called {name[:40]!r}"
            yield finding("duplicate_class_name", message, "rename them", count=count)
    yield from _alike(class_names)
    if not all(class_names):
        fix = f"give its folder a name in {CLASS_NAMES_FILE}"
        yield finding("class_name_invalid", "a class has an empty name", fix)
    bad = [n for n in class_names if len(n) > MAX_CLASS_NAME or not n.isprintable()]
    if bad:
        message = "class names are too long or contain control characters"
        shown = [repr(name[:40]) for name in bad]
        yield finding("class_name_invalid", message, "rename their folders", shown)


def _alike(class_names: Sequence[str]) -> Iterator[Finding]:
    """Different names that have the same tokens in CLIP."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(class_names):
        groups.setdefault(as_tokenised(name), []).append(name)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if alike:
        message = "class names are the same to the text encoder"
        yield finding("class_names_alike", message, "merge the classes, or rename one", alike)


def as_tokenised(name: str) -> str:
    """Normalise what CLIP's tokenizer ignores: letter case, spaces, Unicode forms."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def loosely(name: str) -> str:
    """Also remove what is often mistyped: spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", as_tokenised(name))
