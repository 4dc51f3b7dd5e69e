"""`Settings`: everything that an operator can set, read from SHARPZO_ environment variables."""

import ipaddress
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from sharpzo_core.backbones import (
    ANY_PRETRAINED,
    TINY,
    BackboneSpec,
    find_backbone,
    parse_backbones,
)
from sharpzo_core.errors import SettingsError, ValidationFailed
from sharpzo_core.rates import NO_LIMIT, write_rate

PREFIX = "SHARPZO_"
MIB = 2**20
GIB = 2**30

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Quota = Annotated[int, Field(ge=0, le=10**15)]
Count = Annotated[int, Field(ge=1, le=10**12)]

_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_DATABASES = ("sqlite", "postgresql+psycopg")
_BROKERS = ("redis://", "rediss://", "unix://", "redis+socket://")


class Settings(BaseSettings):
    """The operator's settings; the defaults are the embedded mode."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path(".sharpzo")
    """Folder of everything that the service stores."""

    database_url: str | None = None
    """`postgresql+psycopg://…` or `sqlite:///…`; default: SQLite in the data folder."""

    broker_url: str = ""
    """`redis://…`; empty: messages are files in the data folder."""

    artifact_url: str = ""
    """fsspec URL of the artifact store; empty: a folder in the data folder."""

    device: str = "auto"
    """Where the backbone runs: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

    gpus: str = ""
    """Comma-separated names of GPUs as CUDA_VISIBLE_DEVICES takes them, such as `0,1`: a worker
    runs one job on each at a time. Empty: one job at a time, on `device`."""

    backbones: str = f"{TINY},{ANY_PRETRAINED}"
    """The backbones that requests may name; see `sharpzo_core.backbones`."""

    default_backbone: str = TINY
    """The backbone of a job that names none."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000

    allow_unauthenticated: bool = False
    """Serve on other than loopback addresses although no API key exists; for containers whose port
    is published on loopback only."""

    allowed_hosts: str = ""
    """Comma-separated names that requests may call the service by, such as `sharpzo.example.org`,
    `*.example.org`, `*`; empty: loopback's names and HOST until there is an API key, then any."""

    trusted_proxies: str = ""
    """Comma-separated addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto
    are trusted; empty: none."""

    rate_limit: str = "6000/minute"
    """Requests that an API key without its own limit may send; `none`: any number."""

    auth_failure_limit: str = "600/minute"
    """Wrong API keys that may come from one address; `none`: any number."""

    audit_days: Annotated[int, Field(ge=1, le=36_600)] = 365
    """How long entries of the audit log are kept."""

    lease_seconds: Seconds = 20.0
    """A job whose worker sends no heartbeat for so long is given to another worker."""

    heartbeat_seconds: Seconds = 5.0
    """How often a worker sends a heartbeat."""

    sweep_seconds: Seconds = 5.0
    """How often a worker looks for jobs that need help."""

    checkpoint_seconds: Seconds = 10.0
    """Longest time between two checkpoints of a running job; the first ones come sooner."""

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """Processes that may die of one job, without a new checkpoint in between, before it fails."""

    inference_batch: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Most images in one pass through the image encoder; default: 16 on a processor, 64 else."""

    inference_delay_ms: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 5.0
    """How long an image waits for others that are being decoded, to share a pass with them."""

    inference_queue: Annotated[int, Field(ge=64, le=1_000_000)] = 512
    """Images that may wait or be processed at a time; more are refused with 429. One request may
    carry 64."""

    inference_precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the image encoder where images are classified; tuning always takes float32. For
    int8, serve an exported encoder."""

    decode_threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """Images that are decoded at a time; default: one per core, at most 8."""

    decode_processes: Annotated[int, Field(ge=1, le=64)] | None = None
    """Processes that check the images of an uploaded dataset; default: one per core, at most 4."""

    decode_seconds: Annotated[float, Field(ge=1, le=600, allow_inf_nan=False)] = 10.0
    """An image that takes longer to check than this cannot be used."""

    prompt_cache_mb: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Memory for prompts that are ready to classify, in MiB; the least recently used go first."""

    idempotency_hours: Annotated[float, Field(gt=0, le=24 * 366, allow_inf_nan=False)] = 24.0
    """How long a repeated request with the same Idempotency-Key gets the first answer."""

    upload_idle_seconds: Seconds = 30.0
    """A request whose body makes no progress for so long is aborted."""

    request_memory_mb: Annotated[int, Field(ge=320, le=1_000_000)] = 512
    """Memory for the bodies of requests that are being received or answered, in MiB; archives are
    written to files and do not count. More is refused with 429."""

    max_connections: Annotated[int, Field(ge=10, le=1_000_000)] = 1000
    """Connections that may be open at a time; more are answered 503 and closed."""

    min_free_bytes: Annotated[int, Field(ge=0, le=10**15)] = 64 * MIB
    """With less free space than this in the data folder, the service is not ready."""

    max_queued_jobs: Count = 1000
    """Jobs of one tenant that may wait at a time."""

    tenant_max_active_jobs: Quota = 0
    """Jobs of one tenant that may wait, run or be paused; 0: no limit."""

    tenant_max_storage_bytes: Quota = 0
    """Bytes that the datasets and prompt files of one tenant may take; 0: any number."""

    tenant_max_forward_passes: Quota = 0
    """Forward passes that jobs of one tenant may take in a month (UTC); 0: any number."""

    max_upload_bytes: Count = 2 * GIB
    max_image_pixels: Count = 50_000_000
    allowed_dataset_uris: str = ""
    """Comma-separated URI prefixes that datasets may be imported from; empty: none."""

    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the environment; `overrides` take precedence.

        Raises:
            SettingsError: a value is wrong; the message names the variable.
        """
        try:
            return cls(**overrides)  # type: ignore[arg-type] # pydantic checks them
        except ValidationError as error:
            faults = [_describe(fault["loc"], fault["msg"]) for fault in error.errors()]
            raise SettingsError("; ".join(faults)) from None

    @field_validator("data_dir")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, value: str | None) -> str | None:
        try:
            known = value is None or make_url(value).drivername in _DATABASES
        except ArgumentError:
            known = False
        if not known:
            raise ValueError("give sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME")
        return value

    @field_validator("broker_url")
    @classmethod
    def _check_broker(cls, value: str) -> str:
        if value and not value.startswith(_BROKERS):
            raise ValueError("give redis://HOST:PORT/DB, or nothing for the embedded broker")
        return value

    @field_validator("rate_limit", "auth_failure_limit")
    @classmethod
    def _check_rate(cls, value: str) -> str:
        return value if value == NO_LIMIT else write_rate(value)

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str) -> str:
        for part in _parts(value):
            if part != "*":
                ipaddress.ip_network(part)
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: str) -> str:
        for part in _parts(value):
            if not _HOST.fullmatch(part):
                raise ValueError(f"{part!r} is not a host name (omit the port)")
        return value

    @field_validator("backbones")
    @classmethod
    def _check_backbones(cls, value: str) -> str:
        parse_backbones(value)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if find_backbone(self.backbone_specs, self.default_backbone) is None:
            raise ValueError(
                f"{PREFIX}DEFAULT_BACKBONE: {self.default_backbone!r} is not in {PREFIX}BACKBONES"
            )
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"{PREFIX}LEASE_SECONDS must be at least twice {PREFIX}HEARTBEAT_SECONDS"
            )
        return self

    def environment(self) -> dict[str, str]:
        given = {name: getattr(self, name) for name in self.model_fields_set | {"data_dir"}}
        return {
            f"{PREFIX}{name.upper()}": str(value)
            for name, value in given.items()
            if value is not None
        }

    @property
    def db_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'sharpzo.db'}"

    @property
    def artifacts(self) -> str:
        return self.artifact_url or str(self.data_dir / "artifacts")

    @property
    def embedded_broker(self) -> bool:
        return not self.broker_url

    @property
    def broker_dir(self) -> Path:
        return self.data_dir / "broker"

    @cached_property
    def gpu_names(self) -> tuple[str, ...]:
        """The GPUs that a worker pins its jobs to; if there are none, torch chooses."""
        return _parts(self.gpus)

    @property
    def slots(self) -> int:
        return max(1, len(self.gpu_names))

    @property
    def cache_dir(self) -> Path:
        return self.data_dir / "cache"

    @cached_property
    def backbone_specs(self) -> dict[str, BackboneSpec]:
        return parse_backbones(self.backbones)

    @cached_property
    def dataset_uri_prefixes(self) -> tuple[str, ...]:
        return _parts(self.allowed_dataset_uris)

    @cached_property
    def allowed_host_names(self) -> frozenset[str]:
        """Host names that requests may use; empty if the operator has set none."""
        return frozenset(part.lower() for part in _parts(self.allowed_hosts))

    def backbone(self, name: str | None) -> BackboneSpec:
        """The backbone a request asks for, or the default.

        Raises:
            ValidationFailed: the operator does not offer it.
        """
        spec = find_backbone(self.backbone_specs, name or self.default_backbone)
        if spec is None:
            offered = ", ".join(
                "MODEL:TAG of open_clip" if key == ANY_PRETRAINED else key
                for key in self.backbone_specs
            )
            raise ValidationFailed([("/backbone", f"not offered (choose one of: {offered})")])
        return spec


def _parts(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _describe(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    name = "_".join(str(part) for part in location).upper()
    return f"{PREFIX}{name}: {message}" if name else message
