"""Gateways: their id of a user, whether the shopper was there, what was sent for a repeat"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("payment_methods", sa.Column("gateway_customer", sa.Text(), nullable=True))
    op.create_index(
        op.f("ix_payment_methods_gateway_gateway_token"),
        "payment_methods",
        ["gateway", "gateway_token"],
    )
    op.create_index(
        "ix_payment_methods_gateway_customer",
        "payment_methods",
        ["user_id", "gateway", sa.text("id DESC")],
        postgresql_where=sa.text("gateway_customer IS NOT NULL"),
    )
    op.add_column(
        "payments",
        sa.Column("off_session", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("payments", "off_session")
    op.drop_index("ix_payment_methods_gateway_customer", table_name="payment_methods")
    op.drop_index(op.f("ix_payment_methods_gateway_gateway_token"), table_name="payment_methods")
    op.drop_column("payment_methods", "gateway_customer")
