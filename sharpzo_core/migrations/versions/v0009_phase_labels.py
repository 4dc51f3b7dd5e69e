"""Jobs say in words what they are doing.

Revision ID: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("phase_label", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "phase_label")
