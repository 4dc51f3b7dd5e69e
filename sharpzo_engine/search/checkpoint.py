"""Checkpoints: atomic, hashed, pickle-free, with the one before kept as a fallback."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from sharpzo_engine.checksummed import ChecksumError, seal, unseal
from sharpzo_engine.config import differing
from sharpzo_engine.errors import BackboneMismatch, CheckpointError
from sharpzo_engine.files import write_atomically

KIND = "sharpzo-checkpoint/2"
CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
FIRST_SECONDS = 1.0  # from the start of a run to its first checkpoint
BACKBONE = "backbone"  # the part of a run's identity that has an error of its own

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A run's whole state: arrays, and scalars that JSON holds exactly."""

    arrays: dict[str, NDArray[Any]]
    scalars: dict[str, Any]


@dataclass(frozen=True)
class CheckpointEvent:
    """What became of a checkpoint.

    `saved`: it is durable. `failed`: it could not be written, and the one before stands.
    `rejected`: it is damaged and is not used. `resumed`: the run goes on from it.
    """

    kind: Literal["saved", "failed", "rejected", "resumed"]
    step: int  #: of the run; 0 where it is not known
    error: Exception | None = None


OnCheckpoint = Callable[[CheckpointEvent], None]


class CheckpointFolder:
    """Where one run keeps its checkpoints."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """`identity`, which JSON holds, says by parts what the run is; others' are refused."""
        self._folder = folder
        self._identity = dict(identity)

    def save(self, snapshot: Snapshot) -> None:
        """Write a new checkpoint; at every instant one whole checkpoint exists.

        Raises:
            OSError: it could not be written; the one before stands.
        """
        scalars = {**snapshot.scalars, "identity": self._identity}
        data = seal(snapshot.arrays, scalars, KIND)
        current = self._folder / CURRENT
        if current.exists():
            current.replace(self._folder / PREVIOUS)
        write_atomically(current, data)

    def load(self, on_rejected: Callable[[ChecksumError], None] | None = None) -> Snapshot | None:
        """The newest checkpoint that is whole, or None; `on_rejected` hears of each that is not.

        Raises:
            CheckpointError: it belongs to another run.
            BackboneMismatch: the run began on another backbone.
        """
        for name in (CURRENT, PREVIOUS):
            path = self._folder / name
            if not path.is_file():
                continue
            try:
                return self._read(path)
            except ChecksumError as error:
                logger.warning("checkpoint %s is not used: %s", name, error)
                if on_rejected:
                    on_rejected(error)
        return None

    def _read(self, path: Path) -> Snapshot:
        arrays, scalars = unseal(path.read_bytes(), KIND)
        identity = scalars.pop("identity")
        self._check(differing(identity, self._identity))
        return Snapshot(arrays, scalars)

    def _check(self, parts: list[str]) -> None:
        if parts == [BACKBONE]:
            raise BackboneMismatch("the run began on a backbone with other weights")
        if parts:
            raise CheckpointError(
                f"the checkpoint belongs to another run: {', '.join(parts)} differ "
                "(use a new checkpoint folder)"
            )


class Checkpointing:
    """Saves a run about a second after its start, then at intervals that double up to a longest.

    So a run that is interrupted again and again, each time after seconds, still makes progress.

    A checkpoint that cannot be written does not end the run: the one before stands, and the next
    one is tried in its turn. `on_event` may decide otherwise, by raising.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        longest_seconds: float,
        on_event: OnCheckpoint | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._longest = longest_seconds
        self._interval = min(FIRST_SECONDS, longest_seconds)
        self._on_event = on_event or (lambda _: None)
        self._clock = clock
        self._tried = clock()
        self._saved_step: int | None = None

    def load(self) -> Snapshot | None:
        """The newest whole checkpoint, or None.

        Raises:
            CheckpointError, BackboneMismatch: it belongs to another run.
        """
        return self._folder.load(lambda e: self._on_event(CheckpointEvent("rejected", 0, e)))

    def resumed(self, step: int) -> None:
        """Tell that the run goes on after this step."""
        self._on_event(CheckpointEvent("resumed", step))

    def save_if_due(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Save, if the last try is long enough ago."""
        if self._clock() - self._tried >= self._interval:
            self._interval = min(2 * self._interval, self._longest)
            self.save(step, take)

    def save(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Save, unless this very step is saved already."""
        if step == self._saved_step:
            return
        self._tried = self._clock()
        try:
            self._folder.save(take())
        except OSError as error:
            logger.warning("a checkpoint was not written: %s", error)
            self._on_event(CheckpointEvent("failed", step, error))
        else:
            self._saved_step = step
            self._on_event(CheckpointEvent("saved", step))
