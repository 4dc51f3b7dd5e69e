"""API keys, the audit log and quotas on the wire."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, Field

from sharpzo_core.rates import RATE_PATTERN, write_rate
from sharpzo_core.records.keys import ApiKey, NewKey, Scope
from sharpzo_core.schemas.base import Label, PublicModel, RequestModel
from sharpzo_core.stores.audit import AuditEntry
from sharpzo_core.stores.quotas import Quotas, Usage

MAX_KEY_SECONDS = 10 * 366 * 86_400
MAX_GRACE_SECONDS = 30 * 86_400

Rate = Annotated[str, Field(pattern=RATE_PATTERN), AfterValidator(write_rate)]
KeyScope = Annotated[Scope, Field(strict=False)]  # text in JSON


class KeyCreate(RequestModel):
    """Create an API key of the caller's tenant."""

    name: Label
    """What it is for."""

    scopes: Annotated[list[KeyScope], Field(min_length=1, max_length=len(Scope))]
    """What it may do."""

    expires_in_seconds: Annotated[int, Field(ge=1, le=MAX_KEY_SECONDS)] | None = None
    """How long it is valid; default: until it is revoked."""

    rate_limit: Rate | None = None
    """Requests that it may send, such as `600/minute`; default: the service's own limit."""


class KeyRotate(RequestModel):
    """Replace a key."""

    grace_seconds: Annotated[int, Field(ge=0, le=MAX_GRACE_SECONDS)] = 0
    """How long the old key stays valid."""


class KeyPublic(PublicModel):
    """An API key without the key itself."""

    id: str
    name: str
    tenant: str
    prefix: str
    """The first characters of the key."""

    scopes: list[Scope]
    rate_limit: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute or so."""

    @classmethod
    def from_record(cls, key: ApiKey) -> Self:
        return cls.from_fields(key, scopes=sorted(key.scopes))


class KeyCreated(KeyPublic):
    """A new API key."""

    key: str | None
    """The key, shown once; null where the answer is repeated."""

    @classmethod
    def with_secret(cls, made: NewKey) -> Self:
        return cls.from_fields(made.record, scopes=sorted(made.record.scopes), key=made.text)

    @classmethod
    def without_secret(cls, made: NewKey) -> Self:
        return cls.from_fields(made.record, scopes=sorted(made.record.scopes), key=None)


class AuditPublic(PublicModel):
    """A request that was refused or changed something."""

    id: str
    at: datetime
    key_id: str | None
    method: str
    route: str | None
    object_id: str | None
    status: int
    code: str | None
    request_id: str
    address: str | None

    @classmethod
    def from_record(cls, entry: AuditEntry) -> Self:
        return cls.from_fields(entry)


class QuotaPublic(PublicModel):
    """How much of something is used; `limit` is null if there is none."""

    used: int
    limit: int | None


class UsagePublic(PublicModel):
    """What a tenant has used."""

    tenant: str
    month: str
    """The month in UTC that forward passes are counted in, such as 2026-01."""

    active_jobs: QuotaPublic
    storage_bytes: QuotaPublic
    forward_passes: QuotaPublic

    @classmethod
    def from_record(cls, usage: Usage, quotas: Quotas) -> Self:
        return cls(
            tenant=usage.tenant,
            month=usage.month,
            active_jobs=QuotaPublic(used=usage.active_jobs, limit=quotas.max_active_jobs),
            storage_bytes=QuotaPublic(used=usage.storage_bytes, limit=quotas.max_storage_bytes),
            forward_passes=QuotaPublic(used=usage.forward_passes, limit=quotas.max_forward_passes),
        )
