"""Jobs, their sources, attempts and loss points."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(10), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("preset", sa.String(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("weights_name", sa.String()),
        sa.Column("weights_sha256", sa.String(64)),
        sa.Column("precision", sa.String()),
        sa.Column("device", sa.String()),
        sa.Column("host", sa.String()),
        sa.Column("versions", sa.JSON()),
        sa.Column("error", sa.Text()),
        sa.Column("result_folder", sa.Text()),
        sa.Column("result_files", sa.JSON()),
        sa.Column("result_rows", sa.Integer()),
        sa.Column("result_columns", sa.Integer()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_table(
        "sources",
        sa.Column("job_id", sa.String(10), nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("original_path", sa.Text(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("columns", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "role", "position", name="pk_sources"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_sources_job_id_jobs", ondelete="CASCADE"),
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String(10), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.String(16)),
        sa.Column("error", sa.Text()),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.String()),
        sa.Column("flow_run_id", sa.String()),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_attempts"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_attempts_job_id_jobs", ondelete="CASCADE"),
    )
    op.create_table(
        "loss_points",
        sa.Column("job_id", sa.String(10), nullable=False),
        sa.Column("iteration", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("total", sa.Double(), nullable=False),
        sa.Column("content", sa.Double(), nullable=False),
        sa.Column("style", sa.Double(), nullable=False),
        sa.Column("tv", sa.Double(), nullable=False),
        sa.Column("layers", sa.JSON(), nullable=False),
        sa.Column("learning_rate", sa.Double()),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "iteration", name="pk_loss_points"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_loss_points_job_id_jobs", ondelete="CASCADE"),
    )
