"""Money: refunds, disputes, the inbox of gateway events, idempotency keys, what is looked up"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The moves of refunds in domain/states.py as they were when this migration was written.
REFUND_MOVES = [("pending", "succeeded"), ("pending", "failed"), ("succeeded", "failed")]

RESERVE_REFUND = """
CREATE FUNCTION reserve_refund() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE payments SET refund_reserved = refund_reserved + NEW.amount
        WHERE id = NEW.payment_id;
    ELSIF OLD.status <> 'failed' AND NEW.status = 'failed' THEN
        UPDATE payments SET refund_reserved = refund_reserved - NEW.amount
        WHERE id = NEW.payment_id;
    END IF;
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("owned_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("gateway_key", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("headers", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(status IS NULL) = (body IS NULL)", name=op.f("ck_idempotency_keys_answered")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_idempotency_keys")),
        sa.UniqueConstraint("user_id", "key", name=op.f("uq_idempotency_keys_user_id_key")),
    )
    op.create_index(
        op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"], unique=False
    )
    op.create_index(
        op.f("ix_idempotency_keys_gateway_key"), "idempotency_keys", ["gateway_key"], unique=False
    )
    op.create_table(
        "disputes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("payment_id", sa.BigInteger(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("gateway_reference", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("status IN ('open', 'won', 'lost')", name=op.f("ck_disputes_status")),
        sa.ForeignKeyConstraint(
            ["payment_id"], ["payments.id"], name=op.f("fk_disputes_payment_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_disputes")),
        sa.UniqueConstraint(
            "gateway", "gateway_reference", name=op.f("uq_disputes_gateway_gateway_reference")
        ),
    )
    op.create_index(op.f("ix_disputes_payment_id"), "disputes", ["payment_id"], unique=False)
    op.create_table(
        "gateway_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["payment_id"], ["payments.id"], name=op.f("fk_gateway_events_payment_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateway_events")),
        sa.UniqueConstraint("gateway", "event_id", name=op.f("uq_gateway_events_gateway_event_id")),
    )
    op.create_index(
        op.f("ix_gateway_events_payment_id"), "gateway_events", ["payment_id"], unique=False
    )
    op.create_table(
        "refunds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("payment_id", sa.BigInteger(), nullable=False),
        sa.Column("gateway_key", sa.Text(), nullable=False),
        sa.Column("gateway_reference", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=True),
        sa.Column(
            "asked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("check_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("checks", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "check_at IS NOT NULL OR status <> 'pending'", name=op.f("ck_refunds_open_is_checked")
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'succeeded', 'failed')", name=op.f("ck_refunds_status")
        ),
        sa.CheckConstraint("amount BETWEEN 1 AND 999999999999", name=op.f("ck_refunds_amount")),
        sa.ForeignKeyConstraint(
            ["payment_id"], ["payments.id"], name=op.f("fk_refunds_payment_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refunds")),
        sa.UniqueConstraint("gateway_key", name=op.f("uq_refunds_gateway_key")),
    )
    op.create_index(
        "ix_refunds_check_at",
        "refunds",
        ["check_at"],
        unique=False,
        postgresql_where=sa.text("check_at IS NOT NULL"),
    )
    op.create_index(
        "ix_refunds_payment_id_id",
        "refunds",
        ["payment_id", sa.literal_column("id DESC")],
        unique=False,
    )
    op.add_column("payments", sa.Column("return_url", sa.Text(), nullable=True))
    op.add_column("payments", sa.Column("operation", sa.Text(), nullable=True))
    op.add_column("payments", sa.Column("operation_key", sa.Text(), nullable=True))
    op.add_column("payments", sa.Column("operation_amount", sa.BigInteger(), nullable=True))
    op.add_column(
        "payments",
        sa.Column("refund_reserved", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column(
        "payments",
        sa.Column(
            "asked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
    )
    op.add_column("payments", sa.Column("check_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "payments",
        sa.Column("checks", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.create_index(
        "ix_payments_check_at",
        "payments",
        ["check_at"],
        unique=False,
        postgresql_where=sa.text("check_at IS NOT NULL"),
    )
    op.create_unique_constraint(op.f("uq_payments_operation_key"), "payments", ["operation_key"])

    # What was open before this migration is looked up after it.
    op.execute("UPDATE payments SET check_at = now() WHERE status = 'pending'")
    op.create_check_constraint(
        op.f("ck_payments_refunded_has_amount"),
        "payments",
        "status NOT IN ('captured', 'partially_refunded', 'refunded') OR status = CASE amount_refunded WHEN 0 THEN 'captured' WHEN amount_captured THEN 'refunded' ELSE 'partially_refunded' END",
    )
    op.create_check_constraint(
        op.f("ck_payments_refund_reserved"),
        "payments",
        "refund_reserved BETWEEN 0 AND amount_captured",
    )
    op.create_check_constraint(
        op.f("ck_payments_operation"), "payments", "operation IN ('capture', 'void', 'cancel')"
    )
    op.create_check_constraint(
        op.f("ck_payments_operation_whole"),
        "payments",
        "(operation IS NULL) = (operation_key IS NULL) AND (operation IS NULL) = (operation_amount IS NULL)",
    )
    op.create_check_constraint(
        op.f("ck_payments_operation_amount"), "payments", "operation_amount BETWEEN 1 AND amount"
    )
    op.create_check_constraint(
        op.f("ck_payments_open_is_checked"),
        "payments",
        "check_at IS NOT NULL OR (status <> 'pending' AND operation IS NULL)",
    )

    op.bulk_insert(
        sa.table(
            "status_moves", sa.column("entity"), sa.column("from_status"), sa.column("to_status")
        ),
        [{"entity": "refunds", "from_status": old, "to_status": new} for old, new in REFUND_MOVES],
    )
    op.execute(
        "CREATE TRIGGER guard_status BEFORE INSERT OR UPDATE OF status ON refunds "
        "FOR EACH ROW EXECUTE FUNCTION guard_status()"
    )
    op.execute(RESERVE_REFUND)
    op.execute(
        "CREATE TRIGGER reserve_refund AFTER INSERT OR UPDATE OF status ON refunds "
        "FOR EACH ROW EXECUTE FUNCTION reserve_refund()"
    )


def downgrade() -> None:
    op.execute("DELETE FROM status_moves WHERE entity = 'refunds'")
    op.drop_constraint(op.f("ck_payments_refunded_has_amount"), "payments")
    op.drop_constraint(op.f("ck_payments_refund_reserved"), "payments")
    op.drop_constraint(op.f("ck_payments_operation"), "payments")
    op.drop_constraint(op.f("ck_payments_operation_whole"), "payments")
    op.drop_constraint(op.f("ck_payments_operation_amount"), "payments")
    op.drop_constraint(op.f("ck_payments_open_is_checked"), "payments")

    op.drop_constraint(op.f("uq_payments_operation_key"), "payments", type_="unique")
    op.drop_index(
        "ix_payments_check_at",
        table_name="payments",
        postgresql_where=sa.text("check_at IS NOT NULL"),
    )
    op.drop_column("payments", "checks")
    op.drop_column("payments", "check_at")
    op.drop_column("payments", "asked_at")
    op.drop_column("payments", "refund_reserved")
    op.drop_column("payments", "operation_amount")
    op.drop_column("payments", "operation_key")
    op.drop_column("payments", "operation")
    op.drop_column("payments", "return_url")
    op.drop_index("ix_refunds_payment_id_id", table_name="refunds")
    op.drop_index(
        "ix_refunds_check_at",
        table_name="refunds",
        postgresql_where=sa.text("check_at IS NOT NULL"),
    )
    op.drop_table("refunds")
    op.drop_index(op.f("ix_gateway_events_payment_id"), table_name="gateway_events")
    op.drop_table("gateway_events")
    op.drop_index(op.f("ix_disputes_payment_id"), table_name="disputes")
    op.drop_table("disputes")
    op.drop_index(op.f("ix_idempotency_keys_gateway_key"), table_name="idempotency_keys")
    op.drop_index(op.f("ix_idempotency_keys_created_at"), table_name="idempotency_keys")
    op.drop_table("idempotency_keys")

    op.execute("DROP FUNCTION reserve_refund()")
