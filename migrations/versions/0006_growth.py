"""Growth: lists by time, what is open, and what is reaped are found by an index"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Schema, table, name, columns, and of which rows.
INDEXES: list[tuple[str, str, str, str, str | None]] = [
    ("public", "orders", "ix_orders_created_at_id", "created_at id", "id > 0"),
    ("public", "orders", "ix_orders_status_created_at_id", "status created_at id", "id <> 0"),
    ("public", "orders", "ix_orders_user_id_created_at_id", "user_id created_at id", "id <> 0"),
    (
        "public",
        "orders",
        "ix_orders_user_id_status_created_at_id",
        "user_id status created_at id",
        None,
    ),
    (
        "public",
        "orders",
        "ix_orders_payment_method_id_created_at_id",
        "payment_method_id created_at id",
        "id <> 0 AND payment_method_id IS NOT NULL",
    ),
    (
        "public",
        "orders",
        "ix_orders_payment_method_id_status_created_at_id",
        "payment_method_id status created_at id",
        "payment_method_id IS NOT NULL",
    ),
    ("public", "payments", "ix_payments_created_at_id", "created_at id", "id > 0"),
    ("public", "payments", "ix_payments_status_created_at_id", "status created_at id", "id <> 0"),
    ("public", "payments", "ix_payments_user_id_created_at_id", "user_id created_at id", "id <> 0"),
    (
        "public",
        "payments",
        "ix_payments_user_id_status_created_at_id",
        "user_id status created_at id",
        None,
    ),
    ("public", "payments", "ix_payments_order_id_created_at_id", "order_id created_at id", None),
    ("public", "payments", "ix_payments_review", "created_at id", "needs_review"),
    ("public", "payments", "ix_payments_unsettled", "id", "check_at IS NOT NULL AND id <> 0"),
    (
        "public",
        "refunds",
        "ix_refunds_open",
        "id",
        "status = 'pending' AND gateway_reference IS NULL",
    ),
    ("public", "gateway_events", "ix_gateway_events_created_at", "created_at", None),
    ("sandbox", "requests", "ix_requests_fenced", "created_at", "fenced"),
    ("sandbox", "webhooks", "ix_webhooks_delivered", "delivered_at", "delivered_at IS NOT NULL"),
]


def upgrade() -> None:
    op.add_column(
        "requests",
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        schema="sandbox",
        if_not_exists=True,  # what follows commits it before this migration is through
    )
    # One after the other while writes go on. A migration that was broken off finds here what it has
    # made already, and at most one index that is not valid.
    with op.get_context().autocommit_block():
        for schema, table, name, columns, where in INDEXES:
            found = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
            is_valid = op.get_bind().scalar(found, {"name": f"{schema}.{name}"})
            if is_valid is False:
                op.execute(f"DROP INDEX CONCURRENTLY {schema}.{name}")
            if not is_valid:
                op.create_index(
                    name,
                    table,
                    columns.split(),
                    schema=schema,
                    postgresql_where=None if where is None else sa.text(where),
                    postgresql_concurrently=True,
                )


def downgrade() -> None:
    for schema, table, name, *_ in reversed(INDEXES):
        op.drop_index(name, table_name=table, schema=schema)
    op.drop_column("requests", "created_at", schema="sandbox")
