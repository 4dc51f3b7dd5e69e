"""Every error the engine raises on purpose.

Our exception hierarchy:

EngineError
 ├── ConfigError            a hyperparameter is unknown, out of range or contradictory
 ├── BackboneError          a backbone is unknown, unloadable or of an unsupported kind
 │    └── EncoderAway       a remote encoder does not answer now
 ├── LevelMissing           an encoder does not give what a job needs
 ├── DatasetError           a dataset has no usable classes, too few images, or contradictions
 │    └── TooFewImages      a class has fewer images than shots
 ├── TextError              one text cannot be encoded
 ├── ImageError             one image cannot be decoded or is not allowed
 ├── ArtifactError          a prompt file is damaged or not a tuned prompt
 │    └── BackboneMismatch  a prompt was tuned on another backbone
 ├── NotCalibrated          a prompt has no calibration temperature
 ├── CheckpointError        a checkpoint is damaged or belongs to another run
 ├── MissingPackage         an optional package is not installed
 ├── TuningInterrupted      a caller's `on_step` asked the run to stop
 │    └── TuningCancelled   the run was cancelled
 └── FinishSearch           a caller's `on_step` asked the search to end with its best so far

`code` is the stable, machine-readable name that the REST API and the SDK repeat.
This module imports nothing, so that every process can import it.
"""

from __future__ import annotations


class EngineError(Exception):
    """The engine could not do what was asked."""

    code = "engine_error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class ConfigError(EngineError):
    """A hyperparameter is unknown, out of range or contradicts another.

    `errors` lists each problem as `(path, message)`; the path is the sequence of keys.
    """

    code = "config_invalid"

    def __init__(
        self, message: str | None = None, errors: list[tuple[tuple[str, ...], str]] | None = None
    ) -> None:
        super().__init__(message)
        self.errors = errors or []


class BackboneError(EngineError):
    """The backbone is unknown or cannot be loaded."""

    code = "backbone_unavailable"


class EncoderAway(BackboneError):  # noqa: N818 - named for the fact
    """The remote encoder does not answer; asking again later may help."""

    code = "encoder_away"


class LevelMissing(EngineError):  # noqa: N818 - named for the fact
    """The encoder does not give what this needs."""

    code = "level_missing"


class DatasetError(EngineError):
    """The dataset has no usable classes."""

    code = "dataset_layout_invalid"


class TooFewImages(DatasetError):  # noqa: N818 - named for the fact
    """A class has fewer training images than shots."""

    code = "too_few_images"


class TextError(EngineError):
    """The text cannot be encoded; `index` is its place among those given."""

    code = "text_invalid"

    def __init__(self, message: str | None = None, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class ImageError(EngineError):
    """The image cannot be decoded."""

    code = "image_undecodable"

    def __init__(self, message: str | None = None, code: str = "image_undecodable") -> None:
        super().__init__(message)
        self.code = code


class ArtifactError(EngineError):
    """The prompt file is damaged or not a tuned prompt."""

    code = "artifact_corrupt"


class BackboneMismatch(ArtifactError):  # noqa: N818 - named for the fact
    """The prompt was tuned, or the run was started, on another backbone."""

    code = "backbone_mismatch"


class NotCalibrated(EngineError):  # noqa: N818 - named for the fact
    """The prompt has no temperature to calibrate with (omit `calibrated`, or tune it again)."""

    code = "not_calibrated"


class CheckpointError(EngineError):
    """The checkpoint is damaged or belongs to another run."""

    code = "checkpoint_corrupt"


class MissingPackage(EngineError):  # noqa: N818 - named for the fact
    """An optional package is not installed."""

    code = "package_missing"


class TuningInterrupted(EngineError):  # noqa: N818 - not a fault
    """The run was asked to stop; its last checkpoint can be resumed."""

    code = "interrupted"


class TuningCancelled(TuningInterrupted):
    """The run was cancelled."""

    code = "cancelled"


class FinishSearch(EngineError):  # noqa: N818 - not a fault
    """The search is to end now, and the run to complete with the best prompt so far."""

    code = "finish_search"
