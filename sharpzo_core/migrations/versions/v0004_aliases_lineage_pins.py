"""Aliases of prompts with their history; prompts know where they come from, and can be pinned.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    _aliases()
    _alias_changes()
    for column in (
        sa.Column("lineage", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("pinned", sa.Boolean(), server_default=sa.false(), nullable=False),
    ):
        op.add_column("prompts", column)
    op.create_index("ix_jobs_prompt_id", "jobs", ["prompt_id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_prompt_id", "jobs")
    op.drop_column("prompts", "pinned")
    op.drop_column("prompts", "lineage")
    op.drop_table("alias_changes")
    op.drop_table("aliases")


def _aliases() -> None:
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("alias", sa.String(length=100), nullable=False),
        sa.Column("prompt_id", sa.String(length=40), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", "alias", name="pk_aliases"),
    )
    op.create_index("ix_aliases_alias", "aliases", ["alias"])
    op.create_index("ix_aliases_prompt_id", "aliases", ["prompt_id"])


def _alias_changes() -> None:
    op.create_table(
        "alias_changes",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("alias", sa.String(length=100), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("prompt_id", sa.String(length=40), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("previous_prompt_id", sa.String(length=40), nullable=True),
        sa.Column("beneath", sa.BigInteger(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("gate", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["name", "alias"],
            ["aliases.name", "aliases.alias"],
            name="fk_alias_changes_name",
        ),
        sa.PrimaryKeyConstraint("name", "alias", "seq", name="pk_alias_changes"),
    )
