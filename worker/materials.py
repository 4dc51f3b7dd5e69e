"""A stored dataset as the engine's `Dataset`: files on this machine."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sharpzo_core.artifact_store import ArtifactStore
from sharpzo_core.datasets import DatasetRecord, image_key, manifest_key
from sharpzo_engine.dataset import Dataset, Example, few_shot
from sharpzo_engine.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DOWNLOADS = 8  # at a time


@dataclass(frozen=True)
class Materials:
    """Where datasets come from, and where remote images are kept."""

    artifacts: ArtifactStore
    cache_dir: Path

    def dataset(self, record: DatasetRecord, shots: int, seed: int) -> Dataset:
        """The dataset with its few-shot sample drawn; every file it names exists afterwards.

        Raises:
            NotFound: its files are gone.
            TooFewImages: a class has fewer images than shots.
        """
        manifest = json.loads(self.artifacts.get_bytes(manifest_key(record.id)))
        splits: dict[str, list[dict[str, Any]]] = manifest["splits"]
        train, val, test = (
            tuple(self._example(record.id, item) for item in splits[name])
            for name in ("train", "val", "test")
        )
        classes = tuple(manifest["class_names"])
        dataset = few_shot(Dataset(record.name, classes, train, val, test), shots, seed)
        self._fetch(record.id, (*dataset.train, *dataset.val, *dataset.test))
        return dataset

    def _example(self, dataset_id: str, item: dict[str, Any]) -> Example:
        image = str(item["image"])
        path = self.artifacts.local_path(image_key(dataset_id, image))
        return Example(path or self.cache_dir / "images" / image, int(item["label"]))

    def _fetch(self, dataset_id: str, examples: Sequence[Example]) -> None:
        """Download what is not here; images are named by their content."""
        missing = {example.path for example in examples if not example.path.exists()}
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            list(pool.map(lambda path: self._download(dataset_id, path), missing))

    def _download(self, dataset_id: str, path: Path) -> None:
        write_atomically(path, self.artifacts.get_bytes(image_key(dataset_id, path.name)))
