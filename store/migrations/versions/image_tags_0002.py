"""Words on images of a data set."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "image_tag",
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("row", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("source", "row", "tag"),
        sqlite_with_rowid=False,
    )
