"""`TunedPrompt`: the result of tuning, as one checksummed safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.checksummed import ChecksumError, seal, unseal
from sharpzo_engine.config import PromptConfig
from sharpzo_engine.errors import ArtifactError, NotCalibrated
from sharpzo_engine.files import write_atomically

KIND = "sharpzo-prompt/2"
#: Files written before heads existed.
HEADLESS_KIND = "sharpzo-prompt/1"

Floats = NDArray[np.float32]

LARGEST = 1e30  # keeps sums of products finite in float32
TEMPERATURES = (1e-3, 1e3)  # smallest and largest that may divide logits


class Stacked(NamedTuple):
    """A prompt combined with a head: logits = f weights^T + bias."""

    weights: Floats  #: [C, E]
    bias: Floats  #: [C]


@dataclass(frozen=True)
class TunedPrompt:
    """One tuned prompt with an optional head, and their origin.

    Serving only needs `weights` and `bias`. `class_embeddings` is the prompt without a head;
    `context` gives embeddings for new classes.
    """

    class_names: tuple[str, ...]
    class_embeddings: Floats  #: [C, E], L2-normalised
    context: Floats  #: [M, W], token embeddings that replace those of the context words
    logit_scale: float  #: the prompt's logits are logit_scale * image . class
    #: backbone, config, dataset, metrics, head, engine_version, created_at
    metadata: Mapping[str, Any]
    stacked: Stacked | None = None  #: None without a head

    def __post_init__(self) -> None:
        """Check the content, which may come from a file.

        Raises:
            ArtifactError: shapes, names or scale are inconsistent.
        """
        classes = len(self.class_names)
        if self.class_embeddings.ndim != 2 or self.class_embeddings.shape[0] != classes:
            raise ArtifactError("the prompt file is inconsistent: classes and embeddings differ")
        if classes < 2 or self.context.ndim != 2 or not self.logit_scale > 0:
            raise ArtifactError("the prompt file is inconsistent")
        if self.weights.shape != self.class_embeddings.shape or self.bias.shape != (classes,):
            raise ArtifactError("the prompt file is inconsistent: head and embeddings differ")
        arrays = (self.class_embeddings, self.context, self.weights, self.bias)
        if not all((np.abs(array) <= LARGEST).all() for array in arrays):
            raise ArtifactError("the prompt file contains NaN or numbers that are too large")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the backbone it was tuned on."""
        return str(self.metadata["backbone"]["fingerprint"])

    @property
    def weights(self) -> Floats:
        """The factors of image embeddings [C, E]."""
        if self.stacked:
            return self.stacked.weights
        return np.float32(self.logit_scale) * self.class_embeddings

    @property
    def bias(self) -> Floats:
        """The bias of the logits [C]."""
        if self.stacked:
            return self.stacked.bias
        return np.zeros(len(self.class_names), dtype=np.float32)

    def among(self, class_names: Sequence[str]) -> TunedPrompt:
        """The same prompt, including its head, with only these of its classes.

        Raises:
            ArtifactError: a class is unknown, or there are fewer than two.
        """
        if len(class_names) < 2:
            raise ArtifactError("a classifier needs at least two classes (add classes)")
        places = {name: place for place, name in enumerate(self.class_names)}
        unknown = [name for name in class_names if name not in places]
        if unknown:
            raise ArtifactError(f"the prompt was not tuned on the class {unknown[0]!r}")
        rows = [places[name] for name in class_names]
        stacked = self.stacked
        return replace(
            self,
            class_names=tuple(class_names),
            class_embeddings=self.class_embeddings[rows],
            stacked=None if stacked is None else Stacked(*(array[rows] for array in stacked)),
        )

    @property
    def temperature(self) -> float | None:
        """Divides the logits for calibrated probabilities; fitted on validation images.

        None if the file has no temperature, or an impossible one.
        """
        head = self.metadata.get("head")
        value = head.get("temperature") if isinstance(head, Mapping) else None
        if isinstance(value, int | float) and TEMPERATURES[0] <= value <= TEMPERATURES[1]:
            return float(value)
        return None

    def require_temperature(self) -> float:
        """The temperature, which must exist.

        Raises:
            NotCalibrated: the prompt has none.
        """
        if self.temperature is None:
            raise NotCalibrated
        return self.temperature

    @property
    def hand_written_context(self) -> str:
        """The words that the search started from, such as `a photo of a`."""
        config = self.metadata.get("config")
        prompt = config.get("prompt") if isinstance(config, Mapping) else None
        words = prompt.get("context") if isinstance(prompt, Mapping) else None
        return words if isinstance(words, str) else PromptConfig().context

    @property
    def vectors_sha256(self) -> str:
        """Hash of everything that decides predictions; equal for runs with equal results."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for array in (self.context, self.class_embeddings, self.weights, self.bias):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """The file's content."""
        arrays = {"class_embeddings": self.class_embeddings, "context": self.context}
        if self.stacked:
            arrays |= self.stacked._asdict()
        metadata = {
            **self.metadata,
            "class_names": list(self.class_names),
            "logit_scale": self.logit_scale,
            "vectors_sha256": self.vectors_sha256,
        }
        return seal(arrays, metadata, KIND)

    def save(self, path: str | Path) -> str:
        """Write the file atomically and return its SHA-256."""
        data = self.to_bytes()
        write_atomically(Path(path), data)
        return hashlib.sha256(data).hexdigest()

    @classmethod
    def load(cls, source: str | Path | bytes) -> TunedPrompt:
        """Read a file or its bytes, and verify the checksum.

        Raises:
            ArtifactError: missing, damaged, or not a tuned prompt.
        """
        data = source if isinstance(source, bytes) else _read(Path(source))
        try:
            arrays, metadata = unseal(data, KIND, HEADLESS_KIND)
            # Numbers that are too large for float32 become infinite; `__post_init__` rejects them.
            with np.errstate(over="ignore", invalid="ignore"):
                return cls(
                    class_names=tuple(str(name) for name in metadata.pop("class_names")),
                    class_embeddings=arrays["class_embeddings"].astype(np.float32),
                    context=arrays["context"].astype(np.float32),
                    logit_scale=float(metadata.pop("logit_scale")),
                    metadata={**metadata, "backbone": dict(metadata["backbone"])},
                    stacked=_stacked(arrays),
                )
        except ChecksumError as error:
            raise ArtifactError(f"not a usable prompt file: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError("not a usable prompt file: fields are missing") from error


def _stacked(arrays: Mapping[str, NDArray[Any]]) -> Stacked | None:
    if "weights" not in arrays:
        return None
    return Stacked(arrays["weights"].astype(np.float32), arrays["bias"].astype(np.float32))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror})") from error
