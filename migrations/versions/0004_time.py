"""Money over time: reviews with a reason, refunds made outside, look-ups by gateway and urgency"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# The previous release inserts refunds without their gateway; they get it from their payment.
NAME_REFUND_GATEWAY = """
CREATE FUNCTION name_refund_gateway() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.gateway IS NULL THEN
        SELECT gateway INTO NEW.gateway FROM payments WHERE id = NEW.payment_id;
    END IF;
    RETURN NEW;
END
$$
"""


def upgrade() -> None:
    op.add_column("payments", sa.Column("review_reason", sa.Text(), nullable=True))
    op.add_column("payments", sa.Column("review_state", sa.Text(), nullable=True))
    op.add_column("payments", sa.Column("reviewed_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        op.f("ck_payments_review_reason"),
        "payments",
        "review_reason IN ('outcome_unknown', 'amount_differs', 'second_charge', 'state_contradicts', 'refund_failed_late', 'refund_made_twice')",
    )
    op.execute(
        "UPDATE payments SET review_reason = CASE WHEN status = 'pending' OR operation IS NOT NULL"
        " THEN 'outcome_unknown' ELSE 'state_contradicts' END WHERE needs_review"
    )

    op.add_column(
        "refunds", sa.Column("origin", sa.Text(), server_default="service", nullable=False)
    )
    op.create_check_constraint(
        op.f("ck_refunds_origin"), "refunds", "origin IN ('service', 'gateway')"
    )
    op.add_column("refunds", sa.Column("gateway", sa.Text(), nullable=True))
    op.execute("UPDATE refunds r SET gateway = p.gateway FROM payments p WHERE p.id = r.payment_id")
    op.alter_column("refunds", "gateway", nullable=False)
    op.execute(NAME_REFUND_GATEWAY)
    op.execute(
        "CREATE TRIGGER name_gateway BEFORE INSERT ON refunds "
        "FOR EACH ROW EXECUTE FUNCTION name_refund_gateway()"
    )
    op.create_index(
        "uq_refunds_payment_id_gateway_reference",
        "refunds",
        ["payment_id", "gateway_reference"],
        unique=True,
    )

    op.add_column(
        "disputes", sa.Column("evidence_due_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.create_index("ix_disputes_status_id", "disputes", ["status", sa.literal_column("id DESC")])
    op.add_column("gateway_events", sa.Column("delivery_id", sa.Text(), nullable=True))
    op.create_index(
        "uq_gateway_events_gateway_delivery_id",
        "gateway_events",
        ["gateway", "delivery_id"],
        unique=True,
    )

    op.create_table(
        "comparisons",
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("compared_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("gateway", name=op.f("pk_comparisons")),
    )

    op.create_index(
        "ix_payments_lookup_open",
        "payments",
        ["gateway", "check_at"],
        postgresql_where=sa.text(
            "check_at IS NOT NULL AND (status = 'pending' OR operation IS NOT NULL)"
        ),
    )
    op.create_index(
        "ix_payments_lookup_waiting",
        "payments",
        ["gateway", "check_at"],
        postgresql_where=sa.text(
            "check_at IS NOT NULL AND status <> 'pending' AND operation IS NULL"
        ),
    )
    op.create_index(
        "ix_refunds_lookup",
        "refunds",
        ["gateway", "check_at"],
        postgresql_where=sa.text("check_at IS NOT NULL"),
    )
    op.create_index("ix_payments_gateway_created_at", "payments", ["gateway", "created_at"])
    # Only their plans need them, and those find the new ones.
    op.drop_index("ix_payments_check_at", table_name="payments")
    op.drop_index("ix_refunds_check_at", table_name="refunds")


def downgrade() -> None:
    op.create_index(
        "ix_refunds_check_at",
        "refunds",
        ["check_at"],
        postgresql_where=sa.text("check_at IS NOT NULL"),
    )
    op.create_index(
        "ix_payments_check_at",
        "payments",
        ["check_at"],
        postgresql_where=sa.text("check_at IS NOT NULL"),
    )
    op.drop_index("ix_payments_gateway_created_at", table_name="payments")
    op.drop_index("ix_refunds_lookup", table_name="refunds")
    op.drop_index("ix_payments_lookup_waiting", table_name="payments")
    op.drop_index("ix_payments_lookup_open", table_name="payments")
    op.drop_table("comparisons")
    op.drop_index("uq_gateway_events_gateway_delivery_id", table_name="gateway_events")
    op.drop_column("gateway_events", "delivery_id")
    op.drop_index("ix_disputes_status_id", table_name="disputes")
    op.drop_column("disputes", "evidence_due_at")
    op.drop_index("uq_refunds_payment_id_gateway_reference", table_name="refunds")
    op.execute("DROP TRIGGER name_gateway ON refunds")
    op.execute("DROP FUNCTION name_refund_gateway()")
    op.drop_column("refunds", "gateway")
    op.drop_column("refunds", "origin")
    op.drop_column("payments", "reviewed_at")
    op.drop_column("payments", "review_state")
    op.drop_column("payments", "review_reason")
