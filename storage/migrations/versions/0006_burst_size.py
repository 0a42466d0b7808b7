"""How many drops a job came with; every job until now counts as one that came alone."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("burst_size", sa.Integer(), nullable=False, server_default="1"))
