"""What a watched folder needs: manifests, fingerprints, submissions, leases and phases."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("fingerprint", sa.String(64)))
    op.add_column("jobs", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("manifest", sa.JSON()))
    op.add_column("jobs", sa.Column("lease_until", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("submission", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("jobs", sa.Column("flow_run_id", sa.String()))
    op.add_column("jobs", sa.Column("reused_from", sa.String(10)))
    op.add_column("jobs", sa.Column("attempts_before_retry", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("ix_jobs_fingerprint_state", "jobs", ["fingerprint", "state"])
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"])
    op.add_column("attempts", sa.Column("phase", sa.String()))
    op.add_column("attempts", sa.Column("first_iteration", sa.Integer()))
