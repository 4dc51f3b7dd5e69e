"""Jobs know their checkpoint, their lost workers, and what they began with.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for column in (
        sa.Column("from_checkpoint", sa.String(length=40), nullable=True),
        sa.Column("format", sa.Integer(), server_default="1", nullable=False),
        sa.Column("losses", sa.Integer(), server_default="0", nullable=False),
        sa.Column("checkpoint_folder", sa.String(length=64), nullable=True),
        sa.Column("checkpoint_step", sa.BigInteger(), nullable=True),
        sa.Column("checkpoint_saved_at", sa.DateTime(timezone=True), nullable=True),
    ):
        op.add_column("jobs", column)


def downgrade() -> None:
    for name in (
        "checkpoint_saved_at",
        "checkpoint_step",
        "checkpoint_folder",
        "losses",
        "format",
        "from_checkpoint",
    ):
        op.drop_column("jobs", name)
