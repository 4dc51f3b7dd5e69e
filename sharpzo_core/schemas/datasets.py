"""Datasets on the wire."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field

from sharpzo_core.records.datasets import DatasetRecord, DatasetStatus
from sharpzo_core.schemas.base import ErrorPublic, Label, PublicModel, RequestModel, SafeText


class SplitsPublic(PublicModel):
    """Images per split."""

    train: int = 0
    val: int = 0
    test: int = 0


class DatasetImport(RequestModel):
    """Import a dataset from a place that the operator allows."""

    name: Label
    uri: Annotated[SafeText, Field(min_length=1, max_length=2000)]

    unlabelled: bool = False
    """Take every image, in any folder; such a dataset can only be classified."""


class DatasetPublic(PublicModel):
    """A dataset."""

    id: str
    name: str
    status: DatasetStatus
    labelled: bool
    """Whether its images have classes; if false, the dataset can only be classified."""

    classes: list[str]
    images: int
    """All of them, including those that cannot be read."""

    splits: SplitsPublic
    sha256: str | None
    report: dict[str, Any] | None
    error: ErrorPublic | None
    created_at: datetime

    @classmethod
    def from_record(cls, dataset: DatasetRecord) -> Self:
        error = ErrorPublic.from_columns(dataset.error_code, dataset.error_message)
        return cls.from_fields(dataset, splits=SplitsPublic(**dataset.splits), error=error)
