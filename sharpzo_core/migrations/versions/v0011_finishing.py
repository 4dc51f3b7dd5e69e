"""Jobs can be asked to finish early, and name what ended their search.

Revision ID: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("finishing", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.add_column("jobs", sa.Column("stopped_by", sa.String(32)))


def downgrade() -> None:
    op.drop_column("jobs", "stopped_by")
    op.drop_column("jobs", "finishing")
