"""Parts: embeddings of a few hundred images as one checksummed file, including failed images.

A run over many images stores its parts, so that no worker embeds them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.checksummed import Arrays, ChecksumError, seal, unseal
from sharpzo_engine.clip.encoder import Encoder
from sharpzo_engine.clip.features import BATCH_SIZE, CacheFile
from sharpzo_engine.clip.parallel import map_chunks
from sharpzo_engine.data.images import MAX_IMAGE_PIXELS, decode_image
from sharpzo_engine.errors import BackboneError, DatasetError, ImageError

KIND = "sharpzo-embeddings/1"
#: Images between two checks whether to continue. On a CPU large models take seconds per image, and
#: small batches are equally fast.
CPU_UNIT = 4

OnUnit = Callable[[int], None]  #: called with the images done so far; may raise to stop


@dataclass(frozen=True)
class Part:
    """Embeddings of the readable images of a part; rows are positions in the part."""

    rows: NDArray[np.int64]  #: [K], ascending
    embeddings: NDArray[np.float32]  #: [K, E], L2-normalised
    errors: Mapping[int, ImageError] = field(default_factory=dict)  #: row -> error

    def to_bytes(self, identity: Mapping[str, Any]) -> bytes:
        """The file's content; `identity` (JSON values) identifies the images and the backbone."""
        errors = [[row, error.code, str(error)] for row, error in self.errors.items()]
        arrays: Arrays = {"rows": self.rows, "embeddings": self.embeddings}
        return seal(arrays, {"identity": dict(identity), "errors": errors}, KIND)

    @classmethod
    def from_bytes(cls, data: bytes, identity: Mapping[str, Any]) -> Part:
        """Read a file and verify its checksum.

        Raises:
            ChecksumError: it is damaged, or belongs to other images or another backbone.
        """
        arrays, metadata = unseal(data, KIND)
        if metadata["identity"] != dict(identity):
            raise ChecksumError("it belongs to other images or another backbone")
        errors = {row: ImageError(message, code) for row, code, message in metadata["errors"]}
        return cls(arrays["rows"], arrays["embeddings"], errors)


def embed_part(
    files: Mapping[int, Path],
    backbone: Encoder,
    *,
    cache_dir: Path | None = None,
    max_pixels: int = MAX_IMAGE_PIXELS,
    on_unit: OnUnit = lambda _: None,
) -> Part:
    """Embed image files, given by their rows in ascending order.

    A file that is not a usable image becomes an error of its row. If all files are usable, their
    embeddings are cached by content as in `extract_features`.

    Raises:
        DatasetError: a file cannot be read.
        BackboneError: the backbone returns embeddings that are not finite.
    """
    width = backbone.embed_dim
    if not files:
        return Part(np.empty(0, np.int64), np.empty((0, width), np.float32))
    cached = CacheFile.for_images(cache_dir, files.values(), backbone) if cache_dir else None
    known = cached.read(len(files), width) if cached else None
    if known is not None:
        on_unit(len(files))
        return Part(np.array(list(files), np.int64), known)
    part = _embed(files, backbone, max_pixels, on_unit)
    if not np.isfinite(part.embeddings).all():
        raise BackboneError(f"backbone {backbone.name} gives embeddings that are not numbers")
    if cached and not part.errors:
        cached.write(part.embeddings)
    return part


def _embed(files: Mapping[int, Path], backbone: Encoder, max_pixels: int, on_unit: OnUnit) -> Part:
    def embed(unit: Sequence[tuple[int, Path]]) -> Part:
        errors: dict[int, ImageError] = {}
        pixels: dict[int, NDArray[np.float32]] = {}
        for row, path in unit:
            try:
                pixels[row] = backbone.preprocess(decode_image(_read(path), max_pixels))
            except ImageError as error:
                errors[row] = error
        if not pixels:
            return Part(
                np.empty(0, np.int64), np.empty((0, backbone.embed_dim), np.float32), errors
            )
        embeddings = backbone.encode_images(np.stack(list(pixels.values())))
        return Part(np.array(list(pixels), np.int64), embeddings, errors)

    size = CPU_UNIT if backbone.on_cpu else BATCH_SIZE
    made: list[Part] = []
    done = 0
    for part in map_chunks(embed, _units(files, size), backbone.on_cpu):
        made.append(part)
        done += len(part.rows) + len(part.errors)
        on_unit(done)
    return Part(
        np.concatenate([part.rows for part in made]),
        np.concatenate([part.embeddings for part in made]),
        {row: error for part in made for row, error in part.errors.items()},
    )


def _units(files: Mapping[int, Path], size: int) -> list[list[tuple[int, Path]]]:
    items = iter(files.items())
    return [list(islice(items, size)) for _ in range(-(-len(files) // size))]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path.name}: cannot be read ({error.strerror})") from error
