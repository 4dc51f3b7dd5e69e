"""What a dataset is to the service: a record; its images are in the artifact store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sharpzo_core.database.tenants import DEFAULT_TENANT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

TENANTS = "tenants"  # what the keys of shared files begin with
SPLITS = ("train", "val", "test")
#: Where images without labels are counted and listed, instead of a split. In `source`, it says that
#: a dataset has no others.
UNLABELLED = "unlabelled"


class DatasetStatus(StrEnum):
    """Where a dataset stands."""

    PROCESSING = "processing"  #: Being unpacked and checked
    READY = "ready"  #: May be tuned on
    FAILED = "failed"  #: Cannot be used; its error says why


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """One row of the table `datasets`."""

    id: str
    tenant: str = DEFAULT_TENANT
    name: str
    status: DatasetStatus
    classes: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Split -> class name -> images."""
    bytes: int = 0  #: Of its archive while it is processed, of its images afterwards
    sha256: str | None = None  #: Of the manifest, hence of every image
    report: Mapping[str, Any] | None = None  #: What the check before tuning found
    error_code: str | None = None
    error_message: str | None = None
    source: Mapping[str, Any] = field(default_factory=dict)  #: Where its bytes come from
    shares_images: bool = False
    """Whether its images are among those that its tenant's datasets share (see `blob_key`)."""
    created_at: datetime
    lease_owner: str | None = None  #: The API process that unpacks it
    lease_expires_at: datetime | None = None

    @property
    def labelled(self) -> bool:
        """Whether its images have classes."""
        return not self.source.get(UNLABELLED, False)

    @property
    def images(self) -> int:
        """Images in all, those that cannot be read included."""
        return sum(sum(images.values()) for images in self.counts.values())

    @property
    def splits(self) -> dict[str, int]:
        """Images per split."""
        return {split: sum(self.counts.get(split, {}).values()) for split in SPLITS}


def tenant_prefix(tenant: str) -> str:
    """What the keys of everything that a tenant's datasets share begin with."""
    return f"{TENANTS}/{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"


def images_prefix(tenant: str) -> str:
    """What the keys of a tenant's images begin with."""
    return f"{tenant_prefix(tenant)}/images"


def blob_key(tenant: str, sha256: str) -> str:
    """Where the artifact store keeps a tenant's image, once for all datasets that hold it."""
    return f"{images_prefix(tenant)}/{sha256[:2]}/{sha256}"


def dataset_prefix(dataset_id: str) -> str:
    """What the keys of everything that belongs to the dataset begin with."""
    return f"datasets/{dataset_id}"


def manifest_key(dataset_id: str) -> str:
    """Where the artifact store keeps the dataset's list of images."""
    return f"{dataset_prefix(dataset_id)}/manifest.json"


def sheet_key(dataset_id: str) -> str:
    """Where the artifact store keeps the dataset's contact sheet."""
    return f"{dataset_prefix(dataset_id)}/contact-sheet.jpg"


def stored_key(dataset: DatasetRecord, image: str) -> str:
    """Where the artifact store keeps an image; `image` is its SHA-256 and suffix."""
    if dataset.shares_images:
        return blob_key(dataset.tenant, image.partition(".")[0])
    return image_key(dataset.id, image)


def image_key(dataset_id: str, image: str) -> str:
    """Where earlier versions kept an image: below its dataset."""
    return f"{dataset_prefix(dataset_id)}/images/{image}"
