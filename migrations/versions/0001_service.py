"""The service: payment methods, orders, payments, events, and the sandbox gateway's books"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The moves of domain/states.py as they were when this migration was written.
STATUS_MOVES = {
    "orders": {
        "pending": "canceled paid authorized",
        "authorized": "canceled paid",
        "paid": "shipped refunded",
        "shipped": "delivered refunded",
        "delivered": "refunded",
    },
    "payments": {
        "pending": "requires_action authorized captured failed canceled",
        "requires_action": "pending authorized captured failed canceled",
        "authorized": "captured voided",
        "captured": "partially_refunded refunded",
        "partially_refunded": "refunded captured",
        "refunded": "partially_refunded captured",
    },
}

GUARD_STATUS = """
CREATE FUNCTION guard_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status <> 'pending' THEN
            RAISE EXCEPTION '% begin as pending', TG_TABLE_NAME USING ERRCODE = 'check_violation';
        END IF;
    ELSIF NEW.status <> OLD.status AND NOT EXISTS (
        SELECT FROM status_moves
        WHERE entity = TG_TABLE_NAME AND from_status = OLD.status AND to_status = NEW.status
    ) THEN
        RAISE EXCEPTION '% cannot move from % to %', TG_TABLE_NAME, OLD.status, NEW.status
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "payment_methods",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("payment_type", sa.Text(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("gateway_token", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("details", postgresql.JSONB(), nullable=False),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("is_default", sa.Boolean(), server_default=sa.text("false"), nullable=False),
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
            "payment_type IN ('card', 'paypal', 'bank_account')",
            name=op.f("ck_payment_methods_payment_type"),
        ),
        sa.CheckConstraint("user_id <> ''", name=op.f("ck_payment_methods_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payment_methods")),
        sa.UniqueConstraint("id", "user_id", name=op.f("uq_payment_methods_id_user_id")),
    )
    op.create_index(
        "ix_payment_methods_user_id_id",
        "payment_methods",
        ["user_id", sa.literal_column("id DESC")],
        unique=False,
        postgresql_where=sa.text("is_active"),
    )
    op.create_index(
        "uq_payment_methods_active_fingerprint",
        "payment_methods",
        ["user_id", "fingerprint"],
        unique=True,
        postgresql_where=sa.text("is_active"),
    )
    op.create_index(
        "uq_payment_methods_default",
        "payment_methods",
        ["user_id"],
        unique=True,
        postgresql_where=sa.text("is_active AND is_default"),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("product_id", sa.String(length=255), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("total_amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("payment_method_id", sa.BigInteger(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
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
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_orders_currency")),
        sa.CheckConstraint(
            "status IN ('pending', 'authorized', 'paid', 'shipped', 'delivered', 'canceled', 'refunded')",
            name=op.f("ck_orders_status"),
        ),
        sa.CheckConstraint("user_id <> '' AND product_id <> ''", name=op.f("ck_orders_texts")),
        sa.CheckConstraint("quantity >= 1", name=op.f("ck_orders_quantity")),
        sa.CheckConstraint(
            "total_amount BETWEEN 1 AND 999999999999", name=op.f("ck_orders_total_amount")
        ),
        sa.ForeignKeyConstraint(
            ["payment_method_id", "user_id"],
            ["payment_methods.id", "payment_methods.user_id"],
            name=op.f("fk_orders_payment_method_id_user_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_orders")),
        sa.UniqueConstraint("id", "user_id", name=op.f("uq_orders_id_user_id")),
    )
    op.create_index(
        "ix_orders_payment_method_id_id",
        "orders",
        ["payment_method_id", sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_orders_status_id", "orders", ["status", sa.literal_column("id DESC")], unique=False
    )
    op.create_index(
        "ix_orders_user_id_id", "orders", ["user_id", sa.literal_column("id DESC")], unique=False
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("order_id", sa.BigInteger(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("actor", postgresql.JSONB(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(order_id IS NULL) = (sequence IS NULL)", name=op.f("ck_events_sequence")
        ),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name=op.f("fk_events_order_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("order_id", "sequence", name=op.f("uq_events_order_id_sequence")),
    )
    op.create_table(
        "payments",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("order_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("payment_method_id", sa.BigInteger(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("gateway_key", sa.Text(), nullable=False),
        sa.Column("gateway_reference", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("amount_captured", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("amount_refunded", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("capture_method", sa.Text(), nullable=False),
        sa.Column("capture_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_action", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("failure", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("needs_review", sa.Boolean(), server_default=sa.text("false"), nullable=False),
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
            "(amount_captured > 0) = (status IN ('captured', 'partially_refunded', 'refunded'))",
            name=op.f("ck_payments_captured_has_amount"),
        ),
        sa.CheckConstraint(
            "capture_method IN ('automatic', 'manual')", name=op.f("ck_payments_capture_method")
        ),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_payments_currency")),
        sa.CheckConstraint(
            "status IN ('pending', 'requires_action', 'authorized', 'captured', 'partially_refunded', 'refunded', 'failed', 'voided', 'canceled')",
            name=op.f("ck_payments_status"),
        ),
        sa.CheckConstraint("amount BETWEEN 1 AND 999999999999", name=op.f("ck_payments_amount")),
        sa.CheckConstraint(
            "amount_captured BETWEEN 0 AND amount", name=op.f("ck_payments_amount_captured")
        ),
        sa.CheckConstraint(
            "amount_refunded BETWEEN 0 AND amount_captured",
            name=op.f("ck_payments_amount_refunded"),
        ),
        sa.ForeignKeyConstraint(
            ["order_id", "user_id"],
            ["orders.id", "orders.user_id"],
            name=op.f("fk_payments_order_id_user_id"),
        ),
        sa.ForeignKeyConstraint(
            ["payment_method_id", "user_id"],
            ["payment_methods.id", "payment_methods.user_id"],
            name=op.f("fk_payments_payment_method_id_user_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
        sa.UniqueConstraint("gateway_key", name=op.f("uq_payments_gateway_key")),
    )
    op.create_index(
        "ix_payments_needs_review",
        "payments",
        [sa.literal_column("id DESC")],
        unique=False,
        postgresql_where=sa.text("needs_review"),
    )
    op.create_index(
        "ix_payments_order_id_id",
        "payments",
        ["order_id", sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index("ix_payments_payment_method_id", "payments", ["payment_method_id"])
    op.create_index(
        "ix_payments_status_id", "payments", ["status", sa.literal_column("id DESC")], unique=False
    )
    op.create_index(
        "ix_payments_user_id_id",
        "payments",
        ["user_id", sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "uq_payments_gateway_reference", "payments", ["gateway", "gateway_reference"], unique=True
    )
    op.create_index(
        "uq_payments_live",
        "payments",
        ["order_id"],
        unique=True,
        postgresql_where=sa.text("NOT (status IN ('failed', 'voided', 'canceled'))"),
    )

    op.create_table(
        "status_moves",
        sa.Column("entity", sa.Text(), nullable=False),
        sa.Column("from_status", sa.Text(), nullable=False),
        sa.Column("to_status", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("entity", "from_status", "to_status", name="pk_status_moves"),
    )
    op.bulk_insert(
        sa.table(
            "status_moves", sa.column("entity"), sa.column("from_status"), sa.column("to_status")
        ),
        [
            {"entity": entity, "from_status": old, "to_status": new}
            for entity, moves in STATUS_MOVES.items()
            for old, news in moves.items()
            for new in news.split()
        ],
    )
    op.execute(GUARD_STATUS)
    for table in STATUS_MOVES:
        op.execute(
            f"CREATE TRIGGER guard_status BEFORE INSERT OR UPDATE OF status ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION guard_status()"
        )

    op.execute("CREATE SCHEMA sandbox")
    op.create_table(
        "account",
        sa.Column("single", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("webhook_secret", sa.Text(), nullable=False),
        sa.CheckConstraint("single", name=op.f("ck_account_single")),
        sa.PrimaryKeyConstraint("single", name=op.f("pk_account")),
        schema="sandbox",
    )
    op.create_table(
        "charges",
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("order_id", sa.BigInteger(), nullable=False),
        sa.Column("payment_id", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("capture", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("amount_captured", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("redirect_url", sa.Text(), nullable=True),
        sa.Column("return_url", sa.Text(), nullable=True),
        sa.Column("capture_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "status IN ('requires_action', 'authorized', 'captured', 'voided', 'declined')",
            name=op.f("ck_charges_status"),
        ),
        sa.CheckConstraint(
            "amount_captured BETWEEN 0 AND amount", name=op.f("ck_charges_amount_captured")
        ),
        sa.PrimaryKeyConstraint("reference", name=op.f("pk_charges")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_charges_idempotency_key")),
        schema="sandbox",
    )
    op.create_index(
        op.f("ix_charges_order_id"), "charges", ["order_id"], unique=False, schema="sandbox"
    )
    op.create_index(
        op.f("ix_charges_payment_id"), "charges", ["payment_id"], unique=False, schema="sandbox"
    )
    op.create_table(
        "requests",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fenced", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_requests")),
        schema="sandbox",
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("payload", postgresql.JSONB(), nullable=False),
        sa.Column(
            "due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
        schema="sandbox",
    )
    op.create_index(
        "ix_webhooks_due",
        "webhooks",
        ["due_at"],
        unique=False,
        schema="sandbox",
        postgresql_where=sa.text("delivered_at IS NULL"),
    )
    op.create_table(
        "disputes",
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("charge", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("closes_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["charge"], ["sandbox.charges.reference"], name=op.f("fk_disputes_charge")
        ),
        sa.PrimaryKeyConstraint("reference", name=op.f("pk_disputes")),
        sa.UniqueConstraint("charge", name=op.f("uq_disputes_charge")),
        schema="sandbox",
    )
    op.create_table(
        "refunds",
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("charge", sa.Text(), nullable=False),
        sa.Column("refund_id", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("fails_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("amount > 0", name=op.f("ck_refunds_amount")),
        sa.ForeignKeyConstraint(
            ["charge"], ["sandbox.charges.reference"], name=op.f("fk_refunds_charge")
        ),
        sa.PrimaryKeyConstraint("reference", name=op.f("pk_refunds")),
        schema="sandbox",
    )
    op.create_index(
        op.f("ix_refunds_charge"), "refunds", ["charge"], unique=False, schema="sandbox"
    )

    # The secret that the sandbox signs its webhooks with; made here, it never leaves the database.
    op.execute(
        "INSERT INTO sandbox.account (webhook_secret) "
        "VALUES (replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''))"
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_refunds_charge"), table_name="refunds", schema="sandbox")
    op.drop_table("refunds", schema="sandbox")
    op.drop_table("disputes", schema="sandbox")
    op.drop_index(
        "ix_webhooks_due",
        table_name="webhooks",
        schema="sandbox",
        postgresql_where=sa.text("delivered_at IS NULL"),
    )
    op.drop_table("webhooks", schema="sandbox")
    op.drop_table("requests", schema="sandbox")
    op.drop_index(op.f("ix_charges_payment_id"), table_name="charges", schema="sandbox")
    op.drop_index(op.f("ix_charges_order_id"), table_name="charges", schema="sandbox")
    op.drop_table("charges", schema="sandbox")
    op.drop_table("account", schema="sandbox")

    op.execute("DROP SCHEMA sandbox")
    op.drop_index(
        "uq_payments_live",
        table_name="payments",
        postgresql_where=sa.text("NOT (status IN ('failed', 'voided', 'canceled'))"),
    )
    op.drop_index("uq_payments_gateway_reference", table_name="payments")
    op.drop_index("ix_payments_user_id_id", table_name="payments")
    op.drop_index("ix_payments_status_id", table_name="payments")
    op.drop_index("ix_payments_order_id_id", table_name="payments")
    op.drop_index(
        "ix_payments_needs_review", table_name="payments", postgresql_where=sa.text("needs_review")
    )
    op.drop_table("payments")
    op.drop_table("events")
    op.drop_index("ix_orders_user_id_id", table_name="orders")
    op.drop_index("ix_orders_status_id", table_name="orders")
    op.drop_index("ix_orders_payment_method_id_id", table_name="orders")
    op.drop_table("orders")
    op.drop_index(
        "uq_payment_methods_default",
        table_name="payment_methods",
        postgresql_where=sa.text("is_active AND is_default"),
    )
    op.drop_index(
        "uq_payment_methods_active_fingerprint",
        table_name="payment_methods",
        postgresql_where=sa.text("is_active"),
    )
    op.drop_index(
        "ix_payment_methods_user_id_id",
        table_name="payment_methods",
        postgresql_where=sa.text("is_active"),
    )
    op.drop_table("payment_methods")

    op.drop_table("status_moves")
    op.execute("DROP FUNCTION guard_status()")
