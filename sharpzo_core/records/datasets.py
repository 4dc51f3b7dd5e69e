"""The record of a dataset; its images are in the artifact store."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sharpzo_core.database.tenants import DEFAULT_TENANT

TENANTS = "tenants"  # prefix of the keys of shared files
SPLITS = ("train", "val", "test")
#: Used in place of a split where images without labels are counted and listed. In `source` it marks
#: a dataset that has no other images.
UNLABELLED = "unlabelled"


class DatasetStatus(StrEnum):
    PROCESSING = "processing"  #: Being unpacked and checked
    READY = "ready"  #: May be tuned on
    FAILED = "failed"  #: Cannot be used; its error says why


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    id: str
    tenant: str = DEFAULT_TENANT
    name: str
    status: DatasetStatus
    classes: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Split -> class name -> images."""
    bytes: int = 0  #: Of its archive while it is processed, of its images afterwards
    sha256: str | None = None  #: Of the manifest, hence of every image
    report: Mapping[str, Any] | None = None  #: The report of the pre-flight check
    error_code: str | None = None
    error_message: str | None = None
    source: Mapping[str, Any] = field(
        default_factory=dict
    )  #: Where it was uploaded or imported from
    shares_images: bool = False
    """Whether its images are shared among its tenant's datasets (see `blob_key`)."""
    created_at: datetime
    lease_owner: str | None = None  #: The API process that unpacks it
    lease_expires_at: datetime | None = None

    @property
    def labelled(self) -> bool:
        return not self.source.get(UNLABELLED, False)

    @property
    def images(self) -> int:
        return sum(sum(images.values()) for images in self.counts.values())

    @property
    def splits(self) -> dict[str, int]:
        return {split: sum(self.counts.get(split, {}).values()) for split in SPLITS}


def tenant_prefix(tenant: str) -> str:
    return f"{TENANTS}/{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"


def images_prefix(tenant: str) -> str:
    return f"{tenant_prefix(tenant)}/images"


def blob_key(tenant: str, sha256: str) -> str:
    return f"{images_prefix(tenant)}/{sha256[:2]}/{sha256}"


def dataset_prefix(dataset_id: str) -> str:
    return f"datasets/{dataset_id}"


def manifest_key(dataset_id: str) -> str:
    return f"{dataset_prefix(dataset_id)}/manifest.json"


def sheet_key(dataset_id: str) -> str:
    return f"{dataset_prefix(dataset_id)}/contact-sheet.jpg"


def stored_key(dataset: DatasetRecord, image: str) -> str:
    """Key of an image; `image` is its SHA-256 and suffix."""
    if dataset.shares_images:
        return blob_key(dataset.tenant, image.partition(".")[0])
    return image_key(dataset.id, image)


def image_key(dataset_id: str, image: str) -> str:
    """Key of an image that an earlier version stored, below its dataset."""
    return f"{dataset_prefix(dataset_id)}/images/{image}"
