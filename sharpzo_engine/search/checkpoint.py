"""Checkpoints: atomic, checksummed and without pickle; the previous one is kept as a fallback."""

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
BACKBONE = "backbone"  # this part of a run's identity has its own error

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """The complete state of a run: arrays, and scalars that JSON represents exactly."""

    arrays: dict[str, NDArray[Any]]
    scalars: dict[str, Any]


@dataclass(frozen=True)
class CheckpointEvent:
    """The result of saving or loading a checkpoint.

    `saved`: it is durable. `failed`: it could not be written; the previous one is kept.
    `rejected`: it is damaged and is not used. `resumed`: the run continues from it.
    """

    kind: Literal["saved", "failed", "rejected", "resumed"]
    step: int  #: step of the run; 0 if unknown
    error: Exception | None = None


OnCheckpoint = Callable[[CheckpointEvent], None]


class CheckpointFolder:
    """The folder with the checkpoints of one run."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """`identity` (JSON values) identifies the run; checkpoints of other runs are rejected."""
        self._folder = folder
        self._identity = dict(identity)

    def save(self, snapshot: Snapshot) -> None:
        """Write a new checkpoint; a complete checkpoint exists at any time.

        Raises:
            OSError: it could not be written; the previous one is kept.
        """
        scalars = {**snapshot.scalars, "identity": self._identity}
        data = seal(snapshot.arrays, scalars, KIND)
        current = self._folder / CURRENT
        if current.exists():
            current.replace(self._folder / PREVIOUS)
        write_atomically(current, data)

    def load(self, on_rejected: Callable[[ChecksumError], None] | None = None) -> Snapshot | None:
        """Read the newest undamaged checkpoint, or None; damaged ones are passed to `on_rejected`.

        Raises:
            CheckpointError: the checkpoint belongs to another run.
            BackboneMismatch: the run was started on another backbone.
        """
        for name in (CURRENT, PREVIOUS):
            path = self._folder / name
            if not path.is_file():
                continue
            try:
                return self._read(path)
            except ChecksumError as error:
                logger.warning("checkpoint %s rejected: %s", name, error)
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
            raise BackboneMismatch("the run was started on a backbone with other weights")
        if parts:
            raise CheckpointError(
                f"the checkpoint belongs to another run: {', '.join(parts)} differ "
                "(use a new checkpoint folder)"
            )


class Checkpointing:
    """Saves a run about a second after its start, then at intervals that double up to a longest.

    So a run that is interrupted again and again, each time after seconds, still makes progress.

    A checkpoint that cannot be written does not end the run: the previous one is kept, and the next
    one is written as scheduled. `on_event` may raise to end the run.
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
        """Read the newest undamaged checkpoint, or None.

        Raises:
            CheckpointError, BackboneMismatch: it belongs to another run.
        """
        return self._folder.load(lambda e: self._on_event(CheckpointEvent("rejected", 0, e)))

    def resumed(self, step: int) -> None:
        """Report that the run continues after this step."""
        self._on_event(CheckpointEvent("resumed", step))

    def save_if_due(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Save, if the last try is long enough ago."""
        if self._clock() - self._tried >= self._interval:
            self._interval = min(2 * self._interval, self._longest)
            self.save(step, take)

    def save(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Save, unless this step is saved already."""
        if step == self._saved_step:
            return
        self._tried = self._clock()
        try:
            self._folder.save(take())
        except OSError as error:
            logger.warning("checkpoint not written: %s", error)
            self._on_event(CheckpointEvent("failed", step, error))
        else:
            self._saved_step = step
            self._on_event(CheckpointEvent("saved", step))
