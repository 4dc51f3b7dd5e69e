"""API keys; every row that somebody made has a tenant; usage per month, and the audit log.

Revision ID: 0006
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_FK = "fk_alias_changes_name"
#: Tables whose primary key begins with the tenant from now on -> what it was.
_KEYED = {
    "prompt_names": ["name"],
    "aliases": ["name", "alias"],
    "alias_changes": ["name", "alias", "seq"],
    "idempotency_keys": ["key"],
}
_JOB_INDICES = (["key_id"], ["tenant", "status"], ["tenant", "started_at"])
_LISTED = ("datasets", "jobs", "prompts")


def upgrade() -> None:
    for table in _LISTED:
        op.add_column(table, _tenant())
        op.create_index(f"ix_{table}_tenant_id", table, ["tenant", "id"])
    for table in ("datasets", "prompts"):
        op.add_column(table, _count("bytes"))
    op.add_column("jobs", _count("charged_passes"))
    op.add_column("jobs", sa.Column("key_id", sa.String(length=40), nullable=True))
    for columns in _JOB_INDICES:
        op.create_index(f"ix_jobs_{'_'.join(columns)}", "jobs", columns)
    # What was reported before usage was counted is not charged to anybody.
    op.execute("UPDATE jobs SET charged_passes = forward_passes")
    with op.batch_alter_table("prompts") as batch:
        batch.drop_constraint("uq_prompts_name_version", type_="unique")
        batch.create_unique_constraint(
            "uq_prompts_tenant_name_version", ["tenant", "name", "version"]
        )
    _rebuild_keyed()
    _api_keys()
    _tenant_usage()
    _audit_log()


def downgrade() -> None:
    """Drop them; fails where two tenants have the same name."""
    for table in ("audit_log", "tenant_usage", "api_keys"):
        op.drop_table(table)
    _restore_keyed()
    with op.batch_alter_table("prompts") as batch:
        batch.drop_constraint("uq_prompts_tenant_name_version", type_="unique")
        batch.create_unique_constraint("uq_prompts_name_version", ["name", "version"])
    for columns in _JOB_INDICES:
        op.drop_index(f"ix_jobs_{'_'.join(columns)}", "jobs")
    for column in ("key_id", "charged_passes"):
        op.drop_column("jobs", column)
    for table in ("datasets", "prompts"):
        op.drop_column(table, "bytes")
    for table in _LISTED:
        op.drop_index(f"ix_{table}_tenant_id", table)
        op.drop_column(table, "tenant")


def _rebuild_keyed() -> None:
    with op.batch_alter_table("alias_changes") as batch:
        batch.drop_constraint(_FK, type_="foreignkey")
    for table, columns in _KEYED.items():
        with op.batch_alter_table(table) as batch:
            batch.add_column(_tenant())
            batch.drop_constraint(f"pk_{table}", type_="primary")
            batch.create_primary_key(f"pk_{table}", ["tenant", *columns])
    op.drop_index("ix_aliases_alias", "aliases")
    op.create_index("ix_aliases_tenant_alias", "aliases", ["tenant", "alias"])
    _refer(["tenant", "name", "alias"])


def _restore_keyed() -> None:
    with op.batch_alter_table("alias_changes") as batch:
        batch.drop_constraint(_FK, type_="foreignkey")
    op.drop_index("ix_aliases_tenant_alias", "aliases")
    op.create_index("ix_aliases_alias", "aliases", ["alias"])
    for table, columns in _KEYED.items():
        with op.batch_alter_table(table) as batch:
            batch.drop_constraint(f"pk_{table}", type_="primary")
            batch.drop_column("tenant")
            batch.create_primary_key(f"pk_{table}", columns)
    _refer(["name", "alias"])


def _refer(columns: list[str]) -> None:
    with op.batch_alter_table("alias_changes") as batch:
        batch.create_foreign_key(_FK, "aliases", columns, columns)


def _tenant() -> sa.Column[Any]:
    return sa.Column("tenant", sa.String(length=64), server_default="default", nullable=False)


def _count(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)


def _moment(name: str, *, nullable: bool = True) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=40), nullable=False),
        _tenant(),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("rate_limit", sa.String(length=40), nullable=True),
        _moment("created_at", nullable=False),
        _moment("expires_at"),
        _moment("revoked_at"),
        _moment("last_used_at"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("prefix", name="uq_api_keys_prefix"),
    )
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant", "id"])


def _tenant_usage() -> None:
    op.create_table(
        "tenant_usage",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("forward_passes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "month", name="pk_tenant_usage"),
    )


def _audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.String(length=40), nullable=False),
        _tenant(),
        _moment("at", nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=True),
        sa.Column("method", sa.String(length=16), nullable=False),
        sa.Column("route", sa.String(length=200), nullable=True),
        sa.Column("object_id", sa.String(length=320), nullable=True),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_tenant_id", "audit_log", ["tenant", "id"])
    op.create_index("ix_audit_log_at", "audit_log", ["at"])
