"""Image features: each image is encoded once and cached on disk by content."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sharpzo_engine.clip.augmentation import View
from sharpzo_engine.clip.encoder import Encoder, Floats
from sharpzo_engine.clip.parallel import even_slices, map_chunks
from sharpzo_engine.data.dataset import Example
from sharpzo_engine.data.images import decode_image
from sharpzo_engine.errors import DatasetError, ImageError
from sharpzo_engine.randomness import Purpose, generator

BATCH_SIZE = 32  # images per forward of the image tower
#: The calls for fewer pixels take longer than the products: more threads would only cost more.
MIN_PART_PIXELS = 2**14

Item = TypeVar("Item")
OnProgress = Callable[[int, int], None]  #: (images done, images in all)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, init=False)
class Features:
    """L2-normalised image embeddings [N, E] and class labels [N].

    Takes all that numpy can read, such as tensors in main memory.
    """

    images: Floats
    labels: NDArray[np.int64]

    def __init__(self, images: ArrayLike, labels: ArrayLike) -> None:
        """Convert to float32 and int64 where needed; arrays of these types are not copied."""
        object.__setattr__(self, "images", np.asarray(images, np.float32))
        object.__setattr__(self, "labels", np.asarray(labels, np.int64))

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def __getitem__(self, chosen: slice | NDArray[Any]) -> Features:
        """Some of the images: a slice, positions, or a mask."""
        return Features(self.images[chosen], self.labels[chosen])

    def turns(self) -> NDArray[np.int64]:
        """The number of earlier images of the same class, for each image [N]."""
        found = np.empty_like(self.labels)
        for label in np.unique(self.labels):
            own = self.labels == label
            found[own] = np.arange(own.sum())
        return found


def extract_features(
    examples: Sequence[Example],
    backbone: Encoder,
    *,
    cache_dir: Path | None = None,
    on_progress: OnProgress | None = None,
    view_seed: int | None = None,
) -> Features:
    """Embed every image of a split: its centre crop, or one random view drawn from `view_seed`.

    The cache key is a hash of the images' bytes and the backbone's fingerprint, so that renamed
    files are found and changed files are encoded again.

    Raises:
        DatasetError: an image cannot be read; names the file.
    """
    labels = np.array([example.label for example in examples], np.int64)
    if not examples:
        return Features(np.empty((0, backbone.embed_dim), np.float32), labels)
    paths = [example.path for example in examples]
    cached = cache_dir and CacheFile.for_images(cache_dir, paths, backbone, view_seed)
    images = cached.read(len(examples), backbone.embed_dim) if cached else None
    if images is None:
        images = _embed(examples, backbone, on_progress, _views(len(examples), view_seed))
        if cached:
            cached.write(images)
    elif on_progress:
        on_progress(len(examples), len(examples))
    return Features(images, labels)


def encode_batch(pixels: Sequence[Floats], backbone: Encoder) -> Floats:
    """Preprocessed images, each [3, H, W], -> L2-normalised embeddings [B, E].

    On a CPU, the batch is split into one part per thread, unless they would be very small.
    """

    def embed(part: slice) -> Floats:
        return backbone.encode_images(np.stack(pixels[part]))

    size = len(pixels) * backbone.image_size**2
    if len(pixels) == 1 and size >= MIN_PART_PIXELS:  # the runtime itself uses all threads
        return embed(slice(1))
    parts = even_slices(len(pixels), len(pixels), backbone.on_cpu)
    if size < len(parts) * MIN_PART_PIXELS:
        parts = [slice(len(pixels))]
    return np.concatenate(list(map_chunks(embed, parts, backbone.on_cpu)))


def _views(count: int, seed: int | None) -> list[View | None]:
    if seed is None:
        return [None] * count
    rng = generator(seed, Purpose.VIEWS)
    return [View.draw(rng) for _ in range(count)]


def _embed(
    examples: Sequence[Example],
    backbone: Encoder,
    on_progress: OnProgress | None,
    views: Sequence[View | None],
) -> Floats:
    def pixels(example: Example, view: View | None) -> Floats:
        image = _read(example)
        return backbone.preprocess(view.apply(image, backbone.image_size) if view else image)

    def embed(batch: Sequence[tuple[Example, View | None]]) -> Floats:
        return backbone.encode_images(np.stack([pixels(*item) for item in batch]))

    embedded: list[Floats] = []
    done = 0
    items = list(zip(examples, views, strict=True))
    for images in map_chunks(embed, _batches(items, BATCH_SIZE), backbone.on_cpu):
        embedded.append(images)
        done += len(images)
        if on_progress:
            on_progress(done, len(examples))
    return np.concatenate(embedded)


def _read(example: Example) -> Image.Image:
    try:
        return decode_image(example.path.read_bytes())
    except ImageError as error:
        raise DatasetError(f"{example.path.name}: {error}") from error
    except OSError as error:
        raise DatasetError(f"{example.path.name}: cannot be read ({error.strerror})") from error


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass(frozen=True)
class CacheFile:
    """Cached embeddings of a list of images, named by a hash of everything they depend on."""

    path: Path

    @classmethod
    def for_images(
        cls,
        folder: Path,
        images: Iterable[Path],
        backbone: Encoder,
        view_seed: int | None = None,
    ) -> CacheFile:
        """The cache file of these images.

        Raises:
            DatasetError: an image file cannot be read.
        """
        digest = hashlib.sha256(f"{backbone.fingerprint}{backbone.variant}".encode())
        if view_seed is not None:
            digest.update(f"random view {view_seed}".encode())
        for image in images:
            digest.update(hash_file(image))
        return cls(folder / f"{digest.hexdigest()}.safetensors")

    def read(self, count: int, width: int) -> Floats | None:
        """The cached embeddings, or None if they are missing or damaged."""
        if not self.path.is_file():
            return None
        try:
            images: Floats = load_file(self.path)["images"]
        except (SafetensorError, KeyError, OSError):
            logger.warning(
                "feature cache file %s is damaged and will be written again", self.path.name
            )
            return None
        fits = images.shape == (count, width) and bool(np.isfinite(images).all())
        return images if fits else None

    def write(self, images: Floats) -> None:
        """Write atomically, because several workers may share the folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=self.path.parent, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
        save_file({"images": np.ascontiguousarray(images)}, temporary)
        os.replace(temporary, self.path)  # noqa: PTH105 - the atomic one


def hash_file(path: Path) -> bytes:
    """SHA-256 of a file's bytes.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise DatasetError(f"{path.name}: cannot be read ({error.strerror})") from error
