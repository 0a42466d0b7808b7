"""Room for the roles of sources beside content and style: masks, and the picture to start from."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("sources") as sources:
        sources.alter_column("role", existing_type=sa.String(8), type_=sa.String(16), existing_nullable=False)
