"""The scale of a loss point; every optimisation until now had one."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("loss_points", sa.Column("scale", sa.Integer(), nullable=False, server_default="1"))
