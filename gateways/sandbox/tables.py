"""The sandbox gateway's tables, in a schema of their own."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

metadata = sa.MetaData(
    schema="sandbox",
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    },
)


def _created_at() -> sa.Column[datetime]:
    return sa.Column(
        "created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
    )


# Every money request that arrived, by its key. A fenced key was looked up before any request came
# with it, and is refused from then on. So "it never happened" is a promise.
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fenced", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("reference", sa.Text),
    _created_at(),
    sa.Index("ix_requests_fenced", "created_at", postgresql_where=sa.text("fenced")),
)
charges = sa.Table(
    "charges",
    metadata,
    sa.Column("reference", sa.Text, primary_key=True),
    sa.Column("order_id", sa.BigInteger, nullable=False, index=True),
    sa.Column("payment_id", sa.BigInteger, nullable=False, index=True),
    sa.Column("idempotency_key", sa.Text, nullable=False, unique=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("capture", sa.Boolean, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("amount_captured", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("redirect_url", sa.Text),
    sa.Column("return_url", sa.Text),
    sa.Column("capture_before", sa.DateTime(timezone=True)),
    _created_at(),
    # Triggers set it when the charge, one of its refunds or its dispute changes.
    sa.Column(
        "changed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
    ),
    sa.CheckConstraint("amount_captured BETWEEN 0 AND amount", "amount_captured"),
    sa.CheckConstraint(
        "status IN ('requires_action', 'authorized', 'captured', 'voided', 'declined')", "status"
    ),
    sa.Index("ix_charges_changed_at_reference", "changed_at", "reference"),
    sa.Index("ix_charges_created_at_reference", "created_at", "reference"),
    sa.Index(
        "ix_charges_expiring", "capture_before", postgresql_where=sa.text("status = 'authorized'")
    ),
)
refunds = sa.Table(
    "refunds",
    metadata,
    sa.Column("reference", sa.Text, primary_key=True),
    sa.Column("charge", sa.Text, sa.ForeignKey(charges.c.reference), nullable=False, index=True),
    sa.Column("refund_id", sa.BigInteger),  # the service's id; NULL for one from the dashboard
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("fails_at", sa.DateTime(timezone=True)),
    _created_at(),
    sa.CheckConstraint("amount > 0", "amount"),
    sa.Index("ix_refunds_failing", "fails_at", postgresql_where=sa.text("status = 'pending'")),
)
disputes = sa.Table(
    "disputes",
    metadata,
    sa.Column("reference", sa.Text, primary_key=True),
    sa.Column("charge", sa.Text, sa.ForeignKey(charges.c.reference), nullable=False, unique=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("closes_at", sa.DateTime(timezone=True), nullable=False),
    sa.Index("ix_disputes_closing", "closes_at", postgresql_where=sa.text("status = 'open'")),
)
webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("payload", JSONB, nullable=False),
    sa.Column("due_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("delivered_at", sa.DateTime(timezone=True)),
    sa.Index("ix_webhooks_due", "due_at", postgresql_where=sa.text("delivered_at IS NULL")),
    sa.Index(
        "ix_webhooks_delivered",
        "delivered_at",
        postgresql_where=sa.text("delivered_at IS NOT NULL"),
    ),
)
account = sa.Table(
    "account",
    metadata,
    sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.text("true")),
    sa.Column("webhook_secret", sa.Text, nullable=False),
    # Switches of the dashboard: no webhook is delivered; the next charge is declined.
    sa.Column("webhooks_held", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("decline_next", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.CheckConstraint("single", "single"),
)
