"""Jobs can learn from a second dataset, whose labels are not read.

Revision ID: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("unlabelled_dataset_id", sa.String(40)))
    op.create_index("ix_jobs_unlabelled_dataset_id", "jobs", ["unlabelled_dataset_id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_unlabelled_dataset_id", "jobs")
    op.drop_column("jobs", "unlabelled_dataset_id")
