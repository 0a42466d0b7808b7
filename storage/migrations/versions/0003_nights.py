"""What bulk work and the gallery need: collections, their nights, snapshots, and the orders of lists."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("collection", sa.Text()))
    op.add_column("jobs", sa.Column("night_id", sa.String(10)))
    op.add_column("jobs", sa.Column("snapshot_every", sa.Integer()))
    op.drop_index("ix_jobs_state", "jobs")
    op.create_index("ix_jobs_state_created_at_id", "jobs", ["state", "created_at", "id"])
    op.create_index("ix_jobs_preset_created_at_id", "jobs", ["preset", "created_at", "id"])
    op.create_index("ix_jobs_collection_created_at_id", "jobs", ["collection", "created_at", "id"])
    op.create_index("ix_jobs_night_id", "jobs", ["night_id"])
    op.create_table(
        "nights",
        sa.Column("id", sa.String(10), nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("host", sa.String()),
        sa.Column("pid", sa.Integer()),
        sa.Column("flow_run_id", sa.String()),
        sa.Column("submission", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("pairs", sa.Integer()),
        sa.Column("done_before", sa.Integer()),
        sa.Column("completed", sa.Integer()),
        sa.Column("failed", sa.Integer()),
        sa.Column("cancelled", sa.Integer()),
        sa.Column("problems", sa.JSON()),
        sa.Column("error", sa.Text()),
        sa.Column("contact_sheet", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_nights"),
    )
    op.create_index("ix_nights_collection_started_at_id", "nights", ["collection", "started_at", "id"])
    op.create_index("ix_nights_state", "nights", ["state"])
