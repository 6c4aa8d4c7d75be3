"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "blob",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "dataset",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "measurement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("settings", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("created", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "metric_key_set",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("names", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("names"),
    )
    op.create_table(
        "mirror",
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("remote", sa.String(), nullable=False),
        sa.Column("progress", sa.String(), nullable=False),
        sa.Column("updated", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("target", "subject"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "protocol",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "worker",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started", sa.Float(), nullable=False),
        sa.Column("registered", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("device"),
    )
    op.create_table(
        "artifact_reference",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("owner_kind", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["blob.digest"],
        ),
        sa.PrimaryKeyConstraint("digest", "owner_kind", "owner", "role"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "model",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("family", sa.String(), nullable=False),
        sa.Column("weights_digest", sa.String(), nullable=False),
        sa.Column("blob_digest", sa.String(), nullable=True),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("dataset_digest", sa.String(), nullable=True),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("facts", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.Column("deleted", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["blob_digest"],
            ["blob.digest"],
        ),
        sa.ForeignKeyConstraint(
            ["dataset_digest"],
            ["dataset.digest"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    op.create_index(op.f("ix_model_blob_digest"), "model", ["blob_digest"], unique=False)
    op.create_index(op.f("ix_model_created"), "model", ["created"], unique=False)
    op.create_index(op.f("ix_model_job_id"), "model", ["job_id"], unique=False)
    op.create_index(op.f("ix_model_name"), "model", ["name"], unique=False)
    op.create_index(op.f("ix_model_weights_digest"), "model", ["weights_digest"], unique=False)
    op.create_table(
        "alias",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("updated", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model"],
            ["model.id"],
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index(op.f("ix_alias_model"), "alias", ["model"], unique=False)
    op.create_table(
        "edge",
        sa.Column("child", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["child"],
            ["model.id"],
        ),
        sa.ForeignKeyConstraint(
            ["parent"],
            ["model.id"],
        ),
        sa.PrimaryKeyConstraint("child", "role", "parent"),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_edge_parent"), "edge", ["parent"], unique=False)
    op.create_table(
        "image",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["blob.digest"],
        ),
        sa.ForeignKeyConstraint(
            ["model"],
            ["model.id"],
        ),
        sa.ForeignKeyConstraint(
            ["protocol"],
            ["protocol.id"],
        ),
        sa.PrimaryKeyConstraint("model", "protocol", "kind", "position"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "image_score",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model"],
            ["model.id"],
        ),
        sa.ForeignKeyConstraint(
            ["protocol"],
            ["protocol.id"],
        ),
        sa.PrimaryKeyConstraint("model", "protocol", "split", "metric"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("spec", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("control", sa.String(), nullable=False),
        sa.Column("fraction", sa.Float(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("eta_s", sa.Float(), nullable=True),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("interactive", sa.Integer(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("pid_started", sa.Float(), nullable=True),
        sa.Column("heartbeat", sa.Float(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("requeues", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("model_id", sa.String(), nullable=True),
        sa.Column("parent_model_id", sa.String(), nullable=True),
        sa.Column("parent_job_id", sa.String(), nullable=True),
        sa.Column("result", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.Column("started", sa.String(), nullable=True),
        sa.Column("ended", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["model_id"],
            ["model.id"],
        ),
        sa.ForeignKeyConstraint(
            ["parent_job_id"],
            ["job.id"],
        ),
        sa.ForeignKeyConstraint(
            ["parent_model_id"],
            ["model.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_job_model_id"), "job", ["model_id"], unique=False)
    op.create_index(op.f("ix_job_parent_model_id"), "job", ["parent_model_id"], unique=False)
    op.create_index("ix_job_queue", "job", ["state", "device", "interactive", "id"], unique=False)
    op.create_table(
        "measurement_row",
        sa.Column("measurement", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("figures", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["measurement"],
            ["measurement.id"],
        ),
        sa.ForeignKeyConstraint(
            ["model"],
            ["model.id"],
        ),
        sa.PrimaryKeyConstraint("measurement", "model"),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_measurement_row_model"), "measurement_row", ["model"], unique=False)
    op.create_table(
        "score",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["model"],
            ["model.id"],
        ),
        sa.ForeignKeyConstraint(
            ["protocol"],
            ["protocol.id"],
        ),
        sa.PrimaryKeyConstraint("model", "protocol", "split", "metric"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "score_set",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("row_ids", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("created", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model"],
            ["model.id"],
        ),
        sa.ForeignKeyConstraint(
            ["protocol"],
            ["protocol.id"],
        ),
        sa.PrimaryKeyConstraint("model", "protocol", "split"),
    )
    op.create_index("ix_score_set_split", "score_set", ["split", "model", "created"], unique=False)
    op.create_table(
        "model_text",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("canonical", sa.LargeBinary(), nullable=False),
        sa.Column("spec", sa.String(), nullable=False),
        sa.Column("config", sa.String(), nullable=False),
        sa.Column("layout", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.id"]),
        sa.PrimaryKeyConstraint("model"),
    )
    op.create_table(
        "tag",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model"],
            ["model.id"],
        ),
        sa.PrimaryKeyConstraint("model", "tag"),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_tag_tag"), "tag", ["tag"], unique=False)
    op.create_table(
        "checkpoint",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("figures", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"],
            ["job.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("folder"),
    )
    op.create_index("ix_checkpoint_job", "checkpoint", ["job", "step"], unique=False)
    op.create_table(
        "job_dependency",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("needs", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"],
            ["job.id"],
        ),
        sa.ForeignKeyConstraint(
            ["needs"],
            ["job.id"],
        ),
        sa.PrimaryKeyConstraint("job", "needs"),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_job_dependency_needs"), "job_dependency", ["needs"], unique=False)
    op.create_table(
        "latest",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("key_set", sa.Integer(), nullable=False),
        sa.Column("time", sa.Float(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"],
            ["job.id"],
        ),
        sa.ForeignKeyConstraint(
            ["key_set"],
            ["metric_key_set.id"],
        ),
        sa.PrimaryKeyConstraint("job"),
    )
    op.create_table(
        "metric",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("key_set", sa.Integer(), nullable=False),
        sa.Column("time", sa.Float(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"],
            ["job.id"],
        ),
        sa.ForeignKeyConstraint(
            ["key_set"],
            ["metric_key_set.id"],
        ),
        sa.PrimaryKeyConstraint("job", "step"),
        sqlite_with_rowid=False,
    )
