"""The tables. Stores turn rows into frozen records and never return the rows themselves."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ID = sa.String(40)
NAME = sa.String(200)
TENANT = sa.String(64)


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """A timezone-aware time; SQLite stores it as UTC text that sorts."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Store UTC; SQLite without the zone, which its text form would lose."""
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:  # noqa: ANN401, ARG002
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _tenant(*, primary_key: bool = False) -> sa.Column[Any]:
    """The default is in the database, because an older version may still insert rows."""
    return sa.Column(
        "tenant", TENANT, nullable=False, server_default="default", primary_key=primary_key
    )


def _moment(name: str, *, nullable: bool = True) -> sa.Column[Any]:
    return sa.Column(name, UtcDateTime, nullable=nullable)


datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("id", ID, primary_key=True),
    _tenant(),
    sa.Column("name", NAME, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("classes", sa.JSON, nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Column("sha256", sa.String(64)),
    sa.Column("report", sa.JSON),
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_message", sa.Text),
    sa.Column("source", sa.JSON, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    # Datasets of earlier versions have their images in their own folder.
    sa.Column("shares_images", sa.Boolean, nullable=False, server_default=sa.false()),
    _moment("created_at", nullable=False),
    sa.Column("lease_owner", NAME),
    _moment("lease_expires_at"),
    sa.Index(None, "tenant", "id"),
)

# One row per image of a tenant. `released_at` marks images that some dataset has released.
blobs = sa.Table(
    "blobs",
    metadata,
    _tenant(primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    _moment("released_at"),
    sa.Index(None, "released_at"),
)

# Which dataset contains which image. No foreign key: older versions delete only the dataset.
dataset_images = sa.Table(
    "dataset_images",
    metadata,
    sa.Column("dataset_id", ID, primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),
    _tenant(),
    sa.Index(None, "tenant", "sha256"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", ID, primary_key=True),
    _tenant(),
    sa.Column("key_id", ID),  # the API key that submitted it, if there are keys
    sa.Column("request_id", sa.String(128)),  # the request that created it
    # Defaults in the database too, because an older version may still insert rows.
    sa.Column("kind", sa.String(16), nullable=False, server_default="tuning"),
    sa.Column("name", NAME),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("phase", sa.String(16)),
    sa.Column("phase_label", sa.String(64)),
    sa.Column("dataset_id", ID, nullable=False),  # a finished job outlives its dataset
    sa.Column("unlabelled_dataset_id", ID),  # and this one
    sa.Column("backbone", NAME, nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("from_checkpoint", ID),
    sa.Column("format", sa.Integer, nullable=False, server_default="1"),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("total_steps", sa.BigInteger, nullable=False),
    sa.Column("forward_passes", sa.BigInteger, nullable=False),
    # The largest number that it ever reported, which its tenant was charged.
    sa.Column("charged_passes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("eta_seconds", sa.Double),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("prompt_id", ID),
    sa.Column("finishing", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("stopped_by", sa.String(32)),
    sa.Column("result_folder", sa.String(64)),
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_message", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("losses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("crashes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("checkpoint_folder", sa.String(64)),
    sa.Column("checkpoint_step", sa.BigInteger),
    _moment("checkpoint_saved_at"),
    _moment("created_at", nullable=False),
    _moment("started_at"),
    _moment("finished_at"),
    sa.Column("lease_owner", NAME),
    sa.Column("lease_process", NAME),
    sa.Column("lease_token", sa.String(64)),
    _moment("lease_expires_at"),
    sa.Column("rings", sa.Integer, nullable=False),
    _moment("rung_at"),
    sa.Column("last_event", sa.BigInteger, nullable=False),
    sa.Index(None, "status", "id"),
    sa.Index(None, "kind", "id"),
    sa.Index(None, "tenant", "id"),
    sa.Index(None, "tenant", "status"),
    sa.Index(None, "tenant", "started_at"),
    sa.Index(None, "key_id"),
    sa.Index(None, "dataset_id"),
    sa.Index(None, "unlabelled_dataset_id"),
    sa.Index(None, "prompt_id"),
)

job_events = sa.Table(
    "job_events",
    metadata,
    sa.Column("job_id", ID, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    _moment("created_at", nullable=False),
)

job_steps = sa.Table(
    "job_steps",
    metadata,
    sa.Column("job_id", ID, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("loss", sa.Double),
    sa.Column("val_loss", sa.Double),
    sa.Column("val_accuracy", sa.Double),
    sa.Column("sigma", sa.Double),
    sa.Column("sharpness", sa.Double),
    sa.Column("forward_passes", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
)

# Durations of jobs that a worker ended, as a histogram that outlives the jobs.
job_totals = sa.Table(
    "job_totals",
    metadata,
    _tenant(primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("outcome", sa.String(16), primary_key=True),
    sa.Column("bucket", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("jobs", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
)

prompts = sa.Table(
    "prompts",
    metadata,
    sa.Column("id", ID, primary_key=True),
    _tenant(),
    sa.Column("job_id", ID),
    sa.Column("name", NAME, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("backbone", sa.JSON, nullable=False),
    sa.Column("classes", sa.JSON, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("lineage", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),
    _moment("created_at", nullable=False),
    sa.UniqueConstraint("tenant", "name", "version"),
    sa.Index(None, "tenant", "id"),
)

# A version number is never used twice, even after its prompt was deleted.
prompt_names = sa.Table(
    "prompt_names",
    metadata,
    _tenant(primary_key=True),
    sa.Column("name", NAME, primary_key=True),
    sa.Column("last_version", sa.Integer, nullable=False),
)

# A deleted alias keeps its row, with no prompt, so that its history continues if it is set again.
aliases = sa.Table(
    "aliases",
    metadata,
    _tenant(primary_key=True),
    sa.Column("name", NAME, primary_key=True),
    sa.Column("alias", sa.String(100), primary_key=True),
    sa.Column("prompt_id", ID),
    sa.Column("version", sa.Integer),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    _moment("updated_at", nullable=False),
    sa.Index(None, "tenant", "alias"),
    sa.Index(None, "prompt_id"),
)

# `beneath` is the entry that the next rollback returns to; 0 where there is none.
alias_changes = sa.Table(
    "alias_changes",
    metadata,
    _tenant(primary_key=True),
    sa.Column("name", NAME, primary_key=True),
    sa.Column("alias", sa.String(100), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("prompt_id", ID),
    sa.Column("version", sa.Integer),
    sa.Column("previous_prompt_id", ID),
    sa.Column("beneath", sa.BigInteger, nullable=False),
    sa.Column("comment", sa.Text),
    sa.Column("gate", sa.JSON(none_as_null=True)),
    _moment("created_at", nullable=False),
    sa.ForeignKeyConstraint(
        ["tenant", "name", "alias"], ["aliases.tenant", "aliases.name", "aliases.alias"]
    ),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", NAME, primary_key=True),
    sa.Column("hostname", NAME, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    _moment("started_at", nullable=False),
    _moment("seen_at", nullable=False),
)

# One row per Idempotency-Key; it is reserved while `fingerprint` is null, and completed afterwards.
idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    _tenant(primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("token", sa.String(64), nullable=False),
    sa.Column("fingerprint", sa.String(64)),
    sa.Column("status", sa.Integer),
    sa.Column("body", sa.Text),
    _moment("created_at", nullable=False),
    _moment("expires_at", nullable=False),
    sa.Index(None, "expires_at"),
)

# Only the hash of a key is stored. Revoked and expired keys keep their rows: while a row exists,
# every request needs a key.
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", ID, primary_key=True),
    _tenant(),
    sa.Column("name", NAME, nullable=False),
    sa.Column("prefix", sa.String(16), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("rate_limit", sa.String(40)),
    _moment("created_at", nullable=False),
    _moment("expires_at"),
    _moment("revoked_at"),
    _moment("last_used_at"),
    sa.UniqueConstraint("prefix"),
    sa.Index(None, "tenant", "id"),
)

# What a tenant has used in a month (UTC).
tenant_usage = sa.Table(
    "tenant_usage",
    metadata,
    sa.Column("tenant", TENANT, primary_key=True),
    sa.Column("month", sa.String(7), primary_key=True),  # such as 2026-01
    sa.Column("forward_passes", sa.BigInteger, nullable=False),
)

# Who requested what, with which result; rows are only added, and deleted after the retention time.
audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("id", ID, primary_key=True),
    _tenant(),
    _moment("at", nullable=False),
    sa.Column("key_id", ID),
    sa.Column("method", sa.String(16), nullable=False),
    sa.Column("route", sa.String(200)),
    sa.Column("object_id", sa.String(320)),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("code", sa.String(64)),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("address", sa.String(64)),
    sa.Index(None, "tenant", "id"),
    sa.Index(None, "at"),
)
