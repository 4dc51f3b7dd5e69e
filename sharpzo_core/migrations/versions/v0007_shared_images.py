"""Images are stored once per tenant, and rows say which dataset holds which.

Datasets that were there before keep their images below themselves.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column(
        "datasets",
        sa.Column("shares_images", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.create_table(
        "blobs",
        sa.Column("tenant", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant", "sha256", name="pk_blobs"),
    )
    op.create_index("ix_blobs_released_at", "blobs", ["released_at"])
    op.create_table(
        "dataset_images",
        sa.Column("dataset_id", sa.String(length=40), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), server_default="default", nullable=False),
        sa.PrimaryKeyConstraint("dataset_id", "sha256", name="pk_dataset_images"),
    )
    op.create_index("ix_dataset_images_tenant_sha256", "dataset_images", ["tenant", "sha256"])


def downgrade() -> None:
    """Drop them; images that datasets share are lost to them."""
    op.drop_table("dataset_images")
    op.drop_table("blobs")
    op.drop_column("datasets", "shares_images")
