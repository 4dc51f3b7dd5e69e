"""Where a prompt comes from: what its row stores besides its job, backbone and metrics."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from sharpzo_core.json_safety import MAX_LABEL, unsafe_paths
from sharpzo_core.records.datasets import DatasetRecord
from sharpzo_core.records.jobs import Job

MAX_CONFIG_BYTES = 16 << 10  # of an imported configuration as JSON; ours has about 1 KiB

#: What an imported file may claim: where the claim is, and which values are accepted.
_CLAIMS: Mapping[str, tuple[tuple[str, ...], TypeAdapter[Any]]] = {
    "dataset_name": (
        ("dataset", "name"),
        TypeAdapter(Annotated[str, Field(min_length=1, max_length=MAX_LABEL)]),
    ),
    "config": (("config",), TypeAdapter(dict[str, Any])),
    "seed": (("config", "seed"), TypeAdapter(Annotated[int, Field(ge=0, lt=2**63)])),
    "engine_version": (("engine_version",), TypeAdapter(Annotated[str, Field(max_length=64)])),
}


def tuned_lineage(job: Job, dataset: DatasetRecord, engine_version: object) -> dict[str, Any]:
    return {
        "dataset_id": dataset.id,
        "dataset_name": dataset.name,
        "dataset_sha256": dataset.sha256,
        "config": dict(job.config),
        "seed": job.config.get("seed"),
        "engine_version": engine_version,
        "from_checkpoint": job.from_checkpoint,
    }


def claimed_lineage(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage that an imported prompt file claims, without unusable claims.

    A claim that is missing, too large or of the wrong type is left out.
    """
    found = {name: _claim(metadata, path, kind) for name, (path, kind) in _CLAIMS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _claim(metadata: Mapping[str, Any], path: tuple[str, ...], kind: TypeAdapter[Any]) -> Any:  # noqa: ANN401 - any JSON value
    value: object = metadata
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    try:
        claimed = kind.validate_python(value, strict=True)
    except ValidationError:
        return None
    return claimed if not unsafe_paths(claimed) and _is_small(claimed) else None


def _is_small(value: object) -> bool:
    return len(json.dumps(value)) <= MAX_CONFIG_BYTES
