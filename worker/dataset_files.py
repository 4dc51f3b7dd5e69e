"""A stored dataset as files on this machine."""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharpzo_core.records.datasets import (
    SPLITS,
    UNLABELLED,
    DatasetRecord,
    images_prefix,
    manifest_key,
    stored_key,
)
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_engine.data.dataset import Dataset, Example, few_shot
from sharpzo_engine.data.layout import Part
from sharpzo_engine.errors import ImageError
from sharpzo_engine.files import write_atomically

DOWNLOADS = 8  # at a time


@dataclass(frozen=True)
class ListedImage:
    name: str  #: Its path in the archive that was uploaded
    path: Path | None  #: Of its file, after `fetch`; None if it was never stored
    split: str | None = None  #: None in a dataset without labels
    label: str | None = None
    error: ImageError | None = None  #: Why it was not stored


@dataclass(frozen=True)
class Materials:
    """Reads datasets from the artifact store; remote images are cached."""

    artifacts: ArtifactStore
    cache_dir: Path

    def dataset(
        self, record: DatasetRecord, shots: int, seed: int, classes: Part = "all"
    ) -> Dataset:
        """The dataset with its few-shot sample drawn; every file it names exists afterwards.

        Raises:
            NotFound: its files are gone.
            DatasetError: fewer than two of its classes are wanted.
            TooFewImages: a class has fewer images than shots.
        """
        manifest = self._manifest(record)
        splits: dict[str, list[dict[str, Any]]] = manifest["splits"]
        train, val, test = (
            tuple(self._example(record, item) for item in splits[name]) for name in SPLITS
        )
        names = tuple(manifest["class_names"])
        whole = Dataset(record.name, names, train, val, test)
        dataset = few_shot(whole, shots, seed, classes)
        self.fetch(
            record, (example.path for example in (*dataset.train, *dataset.val, *dataset.test))
        )
        return dataset

    def unlabelled(self, record: DatasetRecord) -> tuple[Path, ...]:
        """The training images, or all images of a dataset without labels; every file exists.

        Raises:
            NotFound: its files are gone.
        """
        listed = self.images(record, "train" if record.labelled else None)
        paths = tuple(dict.fromkeys(image.path for image in listed if image.path is not None))
        self.fetch(record, paths)
        return paths

    def images(self, record: DatasetRecord, split: str | None) -> Sequence[ListedImage]:
        """The images of one split, or all of them, in the dataset's order; none is fetched yet.

        Raises:
            NotFound: its files are gone.
        """
        manifest = self._manifest(record)
        names: Sequence[str] = manifest["class_names"]
        wanted = (*SPLITS, UNLABELLED) if split is None else (split,)
        return [
            self._listed(record, item, names, name)
            for name in wanted
            for item in manifest["splits"].get(name, ())
        ]

    def fetch(self, record: DatasetRecord, paths: Iterable[Path]) -> None:
        """Download the files that are missing; images are named by their content.

        Raises:
            NotFound: one is gone.
        """
        missing = {path for path in paths if not path.exists()}
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            list(pool.map(lambda path: self._download(record, path), missing))

    def _manifest(self, record: DatasetRecord) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(self.artifacts.get_bytes(manifest_key(record.id)))
        return manifest

    def _example(self, record: DatasetRecord, item: dict[str, Any]) -> Example:
        return Example(self._place(record, str(item["image"])), int(item["label"]))

    def _listed(
        self, record: DatasetRecord, item: dict[str, Any], names: Sequence[str], split: str
    ) -> ListedImage:
        image, fault = item.get("image"), item.get("error")
        return ListedImage(
            # Manifests of earlier versions do not have the path.
            name=str(item.get("path", image)),
            path=None if image is None else self._place(record, image),
            split=None if split == UNLABELLED else split,
            label=None if split == UNLABELLED else names[item["label"]],
            error=None if fault is None else ImageError(fault["message"], fault["code"]),
        )

    def _place(self, record: DatasetRecord, image: str) -> Path:
        path = self.artifacts.local_path(stored_key(record, image))
        if path is not None:
            return path
        folder = images_prefix(record.tenant) if record.shares_images else "images"
        return self.cache_dir / folder / image

    def _download(self, record: DatasetRecord, path: Path) -> None:
        write_atomically(path, self.artifacts.get_bytes(stored_key(record, path.name)))
