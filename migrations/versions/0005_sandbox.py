"""The sandbox's books tell what has changed lately, and know acts of its own dashboard"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Whoever changes a charge, a refund or a dispute moves the charge's `changed_at`: the previous
# release, which does not know the column, and a person with psql too. A statement that sets the
# column itself has its way.
MOVE_CHANGED_AT = """
CREATE FUNCTION sandbox.move_changed_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_at = clock_timestamp();
    RETURN NEW;
END
$$
"""
MOVE_CHARGE_CHANGED_AT = """
CREATE FUNCTION sandbox.move_charge_changed_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE sandbox.charges SET changed_at = clock_timestamp() WHERE reference = NEW.charge;
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.add_column(
        "charges",
        sa.Column(
            "changed_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        schema="sandbox",
    )
    op.create_index(
        op.f("ix_charges_changed_at_reference"),
        "charges",
        ["changed_at", "reference"],
        schema="sandbox",
    )
    op.create_index(
        op.f("ix_charges_created_at_reference"),
        "charges",
        ["created_at", "reference"],
        schema="sandbox",
    )
    op.execute(MOVE_CHANGED_AT)
    op.execute(
        "CREATE TRIGGER move_changed_at BEFORE UPDATE ON sandbox.charges FOR EACH ROW"
        " WHEN (NEW.changed_at = OLD.changed_at) EXECUTE FUNCTION sandbox.move_changed_at()"
    )
    op.execute(MOVE_CHARGE_CHANGED_AT)
    for table in ("refunds", "disputes"):
        op.execute(
            f"CREATE TRIGGER move_changed_at AFTER INSERT OR UPDATE OF status ON sandbox.{table}"
            " FOR EACH ROW EXECUTE FUNCTION sandbox.move_charge_changed_at()"
        )

    # What time does is found by when it is due.
    op.create_index(
        "ix_charges_expiring",
        "charges",
        ["capture_before"],
        schema="sandbox",
        postgresql_where=sa.text("status = 'authorized'"),
    )
    op.create_index(
        "ix_refunds_failing",
        "refunds",
        ["fails_at"],
        schema="sandbox",
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_disputes_closing",
        "disputes",
        ["closes_at"],
        schema="sandbox",
        postgresql_where=sa.text("status = 'open'"),
    )

    op.alter_column("refunds", "refund_id", nullable=True, schema="sandbox")
    for switch in ("webhooks_held", "decline_next"):
        op.add_column(
            "account",
            sa.Column(switch, sa.Boolean(), server_default=sa.text("false"), nullable=False),
            schema="sandbox",
        )


def downgrade() -> None:
    op.drop_column("account", "decline_next", schema="sandbox")
    op.drop_column("account", "webhooks_held", schema="sandbox")
    op.execute("UPDATE sandbox.refunds SET refund_id = 0 WHERE refund_id IS NULL")
    op.alter_column("refunds", "refund_id", nullable=False, schema="sandbox")
    op.drop_index("ix_disputes_closing", table_name="disputes", schema="sandbox")
    op.drop_index("ix_refunds_failing", table_name="refunds", schema="sandbox")
    op.drop_index("ix_charges_expiring", table_name="charges", schema="sandbox")
    for table in ("disputes", "refunds"):
        op.execute(f"DROP TRIGGER move_changed_at ON sandbox.{table}")
    op.execute("DROP FUNCTION sandbox.move_charge_changed_at()")
    op.execute("DROP TRIGGER move_changed_at ON sandbox.charges")
    op.execute("DROP FUNCTION sandbox.move_changed_at()")
    op.drop_index("ix_charges_created_at_reference", table_name="charges", schema="sandbox")
    op.drop_index("ix_charges_changed_at_reference", table_name="charges", schema="sandbox")
    op.drop_column("charges", "changed_at", schema="sandbox")
