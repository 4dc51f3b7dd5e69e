"""Checkpoints: atomic, hashed, pickle-free, with the one before kept as a fallback."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sharpzo_engine.errors import CheckpointError
from sharpzo_engine.files import write_atomically
from sharpzo_engine.sealed import SealBroken, seal, unseal

KIND = "sharpzo-checkpoint/1"
_NAME, _PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A run's whole state: arrays, and scalars that JSON holds exactly."""

    arrays: dict[str, NDArray[Any]]
    scalars: dict[str, Any]


class CheckpointFolder:
    """Where one run keeps its checkpoints."""

    def __init__(self, folder: Path, identity: str) -> None:
        """`identity` names the run (a hash of what decides it); another run's files are refused."""
        self._folder = folder
        self._identity = identity

    def save(self, snapshot: Snapshot) -> None:
        """Write a new checkpoint; at every instant one whole checkpoint exists."""
        scalars = {**snapshot.scalars, "identity": self._identity}
        data = seal(snapshot.arrays, scalars, KIND)
        current = self._folder / _NAME
        if current.exists():
            current.replace(self._folder / _PREVIOUS)
        write_atomically(current, data)

    def load(self) -> Snapshot | None:
        """The newest checkpoint that is whole, or None if there is none.

        Raises:
            CheckpointError: it belongs to another run.
        """
        for name in (_NAME, _PREVIOUS):
            snapshot = self._read(self._folder / name)
            if snapshot:
                return snapshot
        return None

    def _read(self, path: Path) -> Snapshot | None:
        if not path.is_file():
            return None
        try:
            arrays, scalars = unseal(path.read_bytes(), KIND)
        except SealBroken as error:
            logger.warning("checkpoint %s is not used: %s", path.name, error)
            return None
        if scalars.pop("identity") != self._identity:
            raise CheckpointError(
                "the checkpoint belongs to another run: config, dataset or backbone differ "
                "(use a new checkpoint folder)"
            )
        return Snapshot(arrays, scalars)
