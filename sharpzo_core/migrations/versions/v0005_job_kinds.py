"""Jobs have a kind, and those that publish no prompt a folder of results.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    kind = sa.Column("kind", sa.String(length=16), server_default="tuning", nullable=False)
    op.add_column("jobs", kind)
    op.add_column("jobs", sa.Column("result_folder", sa.String(length=64), nullable=True))
    op.create_index("ix_jobs_kind_id", "jobs", ["kind", "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_kind_id", "jobs")
    op.drop_column("jobs", "result_folder")
    op.drop_column("jobs", "kind")
