"""The tables: columns, constraints and indexes. No queries; those live in `crud`.

What must never be true of the data is refused here, by CHECKs, foreign keys and partial unique
indexes; which status may follow which is refused by a trigger (see `migrations/`).
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

from domain import states
from domain.money import MAX_AMOUNT

NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}

# Names that `crud` needs to tell one conflict from another.
UQ_ACTIVE_FINGERPRINT = "uq_payment_methods_active_fingerprint"
UQ_LIVE_PAYMENT = "uq_payments_live"
UQ_REFUND_REFERENCE = "uq_refunds_payment_id_gateway_reference"


def one_of(column: str, values: Iterable[str]) -> str:
    """The SQL of "this column holds one of these words"."""
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


# What was asked for and has no answer yet. Partial indexes hold it, so that to count it costs
# nothing for what is answered; PostgreSQL uses them for these very words.
OPEN_PAYMENT = "check_at IS NOT NULL AND (status = 'pending' OR operation IS NOT NULL)"
OPEN_REFUND = "status = 'pending' AND gateway_reference IS NULL"


# Where PostgreSQL expects many rows to fit, it reads a list from the index of a wider list, and
# walks all of it when the newest rows do not fit. A partial index serves only statements that state
# its condition. These two are true of every row: they keep an index to the lists that it is for.
LISTS_ALL = "id > 0"
LISTS_BY_ONE_FILTER = "id <> 0"  # of one status, of one method
# These two as well. And `id = 1` does not prove them, so that no row is looked up by its user, with
# all rows of that user, where PostgreSQL does not know yet how many they are.
LISTS_OF_USER = "created_at > '-infinity'"
LISTS_OF_USER_BY_STATUS = "created_at < 'infinity'"
HAS_METHOD = "payment_method_id IS NOT NULL"


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        int: BigInteger,
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        dict[str, str]: JSONB,
    }
    # UPDATE … RETURNING brings back what the database set (updated_at) in the same round trip.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012


class OfUser(Base):
    """A row of a user. Its identity is (user_id, id), so that every flush names the user as well.

    To the database `id` alone is the primary key.
    """

    __abstract__ = True

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    @declared_attr.directive
    def __mapper_args__(cls) -> dict[str, Any]:  # noqa: N805 - it is one of the class
        columns = cls.__table__.c
        return {**Base.__mapper_args__, "primary_key": [columns.user_id, columns.id]}


class PaymentMethod(OfUser):
    """A card, wallet or account that a user saved. Holds the gateway's token, never a number."""

    __tablename__ = "payment_methods"

    payment_type: Mapped[str]
    gateway: Mapped[str]
    gateway_token: Mapped[str]
    gateway_customer: Mapped[str | None]  # the gateway's own id of the user
    # HMAC-SHA-256 (hex) of what identifies the card or account, under the newest FINGERPRINT_KEY.
    fingerprint: Mapped[str | None]
    details: Mapped[dict[str, Any]]
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
    is_default: Mapped[bool] = mapped_column(server_default=text("false"))
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    __table_args__ = (
        CheckConstraint(one_of("payment_type", ("card", "paypal", "bank_account")), "payment_type"),
        CheckConstraint("user_id <> ''", "user_id"),
        # The target of the foreign keys that keep an order and its method with one user.
        UniqueConstraint("id", "user_id"),
        Index(
            UQ_ACTIVE_FINGERPRINT,
            "user_id",
            "fingerprint",
            unique=True,
            postgresql_where=text("is_active"),
        ),
        Index(
            "uq_payment_methods_default",
            "user_id",
            unique=True,
            postgresql_where=text("is_active AND is_default"),
        ),
        Index(
            "ix_payment_methods_user_id_id",
            "user_id",
            text("id DESC"),
            postgresql_where=text("is_active"),
        ),
        # For the first of them, active or not: `crud.lock_user` locks it.
        Index("ix_payment_methods_user_id_first", "user_id", "id"),
        Index("ix_payment_methods_gateway_gateway_token", "gateway", "gateway_token"),
        Index(
            "ix_payment_methods_gateway_customer",
            "user_id",
            "gateway",
            text("id DESC"),
            postgresql_where=text("gateway_customer IS NOT NULL"),
        ),
    )


class Order(OfUser):
    """What a user buys, and how far its payment and delivery have come."""

    __tablename__ = "orders"

    product_id: Mapped[str] = mapped_column(String(255))
    quantity: Mapped[int]
    total_amount: Mapped[int]
    currency: Mapped[str] = mapped_column(String(3))
    status: Mapped[states.OrderStatus] = mapped_column(Text, server_default="pending")
    payment_method_id: Mapped[int | None]
    # `metadata` itself is taken by SQLAlchemy's declarative base.
    metadata_: Mapped[dict[str, str]] = mapped_column(
        "metadata", key="metadata_", server_default=text("'{}'")
    )
    last_sequence: Mapped[int] = mapped_column(server_default=text("0"))
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    __table_args__ = (
        ForeignKeyConstraint(
            ["payment_method_id", "user_id"], ["payment_methods.id", "payment_methods.user_id"]
        ),
        UniqueConstraint("id", "user_id"),
        CheckConstraint("user_id <> '' AND product_id <> ''", "texts"),
        CheckConstraint("quantity >= 1", "quantity"),
        CheckConstraint(f"total_amount BETWEEN 1 AND {MAX_AMOUNT}", "total_amount"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", "currency"),
        CheckConstraint(one_of("status", states.ORDER_STATUSES), "status"),
        Index("ix_orders_created_at_id", "created_at", "id", postgresql_where=text(LISTS_ALL)),
        Index(
            "ix_orders_status_created_at_id",
            "status",
            "created_at",
            "id",
            postgresql_where=text(LISTS_BY_ONE_FILTER),
        ),
        Index(
            "ix_orders_of_user",
            "user_id",
            "created_at",
            "id",
            postgresql_where=text(LISTS_OF_USER),
        ),
        Index(
            "ix_orders_of_user_by_status",
            "user_id",
            "status",
            "created_at",
            "id",
            postgresql_where=text(LISTS_OF_USER_BY_STATUS),
        ),
        Index(
            "ix_orders_payment_method_id_created_at_id",
            "payment_method_id",
            "created_at",
            "id",
            postgresql_where=text(f"{LISTS_BY_ONE_FILTER} AND {HAS_METHOD}"),
        ),
        Index(
            "ix_orders_payment_method_id_status_created_at_id",
            "payment_method_id",
            "status",
            "created_at",
            "id",
            postgresql_where=text(HAS_METHOD),
        ),
        # For the lists of the release before this one; the next one drops them.
        Index("ix_orders_user_id_id", "user_id", text("id DESC")),
        Index("ix_orders_status_id", "status", text("id DESC")),
        Index("ix_orders_payment_method_id_id", "payment_method_id", text("id DESC")),
    )


class Event(OfUser):
    """A change of state, written in the transaction that made it (the outbox and the history)."""

    __tablename__ = "events"

    type: Mapped[str]
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
    sequence: Mapped[int | None]  # counts per order
    actor: Mapped[dict[str, Any]]
    request_id: Mapped[str | None]
    data: Mapped[dict[str, Any]]

    __table_args__ = (
        UniqueConstraint("order_id", "sequence"),
        CheckConstraint("(order_id IS NULL) = (sequence IS NULL)", "sequence"),
    )


class Payment(OfUser):
    """One attempt to charge an order. Its row is committed before any gateway is asked."""

    __tablename__ = "payments"

    order_id: Mapped[int]
    payment_method_id: Mapped[int]
    gateway: Mapped[str]
    # Our idempotency key towards the gateway: the same for every repeat of this attempt.
    gateway_key: Mapped[str] = mapped_column(unique=True)
    gateway_reference: Mapped[str | None]
    status: Mapped[states.PaymentStatus] = mapped_column(Text, server_default="pending")
    amount: Mapped[int]
    amount_captured: Mapped[int] = mapped_column(server_default=text("0"))
    amount_refunded: Mapped[int] = mapped_column(server_default=text("0"))
    currency: Mapped[str] = mapped_column(String(3))
    capture_method: Mapped[states.CaptureMethod] = mapped_column(Text)
    capture_before: Mapped[datetime | None]
    next_action: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    failure: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    needs_review: Mapped[bool] = mapped_column(server_default=text("false"))
    review_reason: Mapped[states.ReviewReason | None] = mapped_column(Text)
    # What the gateway showed then, in short: once accepted, the same is not asked about again.
    review_state: Mapped[str | None]
    reviewed_at: Mapped[datetime | None]  # when a person ended the last review
    # What the gateway was sent beside the amount: a repeat under the same key must be the same.
    return_url: Mapped[str | None]
    off_session: Mapped[bool] = mapped_column(server_default=text("false"))
    # A capture or void that is claimed and not settled: what, how much, and its key.
    operation: Mapped[states.PaymentOperation | None] = mapped_column(Text)
    operation_key: Mapped[str | None] = mapped_column(unique=True)
    operation_amount: Mapped[int | None]
    # Pending and succeeded refunds, kept by a trigger on `refunds`.
    refund_reserved: Mapped[int] = mapped_column(server_default=text("0"))
    # When the gateway is asked what became of it; NULL when nothing is open.
    requested_at: Mapped[datetime] = mapped_column(
        "asked_at", key="requested_at", server_default=func.now()
    )
    next_lookup_at: Mapped[datetime | None] = mapped_column("check_at", key="next_lookup_at")
    lookup_count: Mapped[int] = mapped_column(
        "checks", key="lookup_count", server_default=text("0")
    )
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    __table_args__ = (
        ForeignKeyConstraint(["order_id", "user_id"], ["orders.id", "orders.user_id"]),
        ForeignKeyConstraint(
            ["payment_method_id", "user_id"], ["payment_methods.id", "payment_methods.user_id"]
        ),
        UniqueConstraint("id", "user_id"),
        CheckConstraint(f"amount BETWEEN 1 AND {MAX_AMOUNT}", "amount"),
        CheckConstraint("amount_captured BETWEEN 0 AND amount", "amount_captured"),
        CheckConstraint("amount_refunded BETWEEN 0 AND amount_captured", "amount_refunded"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", "currency"),
        CheckConstraint(one_of("status", states.PAYMENT_STATUSES), "status"),
        CheckConstraint(one_of("capture_method", ("automatic", "manual")), "capture_method"),
        CheckConstraint(
            f"(amount_captured > 0) = ({one_of('status', states.CAPTURED_PAYMENT_STATUSES)})",
            "captured_has_amount",
        ),
        CheckConstraint(
            "status NOT IN ('captured', 'partially_refunded', 'refunded') OR status = CASE "
            "amount_refunded WHEN 0 THEN 'captured' WHEN amount_captured THEN 'refunded' "
            "ELSE 'partially_refunded' END",
            "refunded_has_amount",
        ),
        CheckConstraint("refund_reserved BETWEEN 0 AND amount_captured", "refund_reserved"),
        CheckConstraint(one_of("review_reason", states.REVIEW_REASONS), "review_reason"),
        CheckConstraint(one_of("operation", states.PAYMENT_OPERATIONS), "operation"),
        CheckConstraint(
            "(operation IS NULL) = (operation_key IS NULL) "
            "AND (operation IS NULL) = (operation_amount IS NULL)",
            "operation_whole",
        ),
        CheckConstraint("operation_amount BETWEEN 1 AND amount", "operation_amount"),
        # What waits for the gateway is always looked up some day.
        CheckConstraint(
            "check_at IS NOT NULL OR (status <> 'pending' AND operation IS NULL)", "open_is_checked"
        ),
        # One charge per order, by the database's own word.
        Index(
            UQ_LIVE_PAYMENT,
            "order_id",
            unique=True,
            postgresql_where=text(f"NOT ({one_of('status', states.DEAD_PAYMENT_STATUSES)})"),
        ),
        Index("ix_payments_created_at_id", "created_at", "id", postgresql_where=text(LISTS_ALL)),
        Index(
            "ix_payments_status_created_at_id",
            "status",
            "created_at",
            "id",
            postgresql_where=text(LISTS_BY_ONE_FILTER),
        ),
        Index(
            "ix_payments_of_user",
            "user_id",
            "created_at",
            "id",
            postgresql_where=text(LISTS_OF_USER),
        ),
        Index(
            "ix_payments_of_user_by_status",
            "user_id",
            "status",
            "created_at",
            "id",
            postgresql_where=text(LISTS_OF_USER_BY_STATUS),
        ),
        Index("ix_payments_order_id_created_at_id", "order_id", "created_at", "id"),
        Index("ix_payments_review", "created_at", "id", postgresql_where=text("needs_review")),
        Index("ix_payments_payment_method_id", "payment_method_id"),
        # For the lists of the release before this one; the next one drops them.
        Index("ix_payments_order_id_id", "order_id", text("id DESC")),
        Index("ix_payments_user_id_id", "user_id", text("id DESC")),
        Index("ix_payments_status_id", "status", text("id DESC")),
        Index("ix_payments_needs_review", text("id DESC"), postgresql_where=text("needs_review")),
        # What is due to be looked up: outcomes that are open, and apart from them what waits.
        Index(
            "ix_payments_lookup_open",
            "gateway",
            "next_lookup_at",
            postgresql_where=text(OPEN_PAYMENT),
        ),
        Index(
            "ix_payments_lookup_waiting",
            "gateway",
            "next_lookup_at",
            postgresql_where=text(
                "check_at IS NOT NULL AND status <> 'pending' AND operation IS NULL"
            ),
        ),
        # What has come of age to be read again, where a gateway cannot list what moved.
        Index("ix_payments_gateway_created_at", "gateway", "created_at"),
        # For going through them by id, `id > …`, and not for what is due.
        Index(
            "ix_payments_unsettled", "id", postgresql_where=text("check_at IS NOT NULL AND id <> 0")
        ),
        Index("uq_payments_gateway_reference", "gateway", "gateway_reference", unique=True),
    )


class Refund(OfUser):
    """Money given back. Its amount is reserved before any gateway is asked.

    One that was made outside, in the gateway's own dashboard, has the origin "gateway".
    """

    __tablename__ = "refunds"

    payment_id: Mapped[int]
    gateway_key: Mapped[str] = mapped_column(unique=True)
    gateway_reference: Mapped[str | None]
    gateway: Mapped[str]  # its payment's; a trigger names it where an insert does not
    origin: Mapped[states.RefundOrigin] = mapped_column(Text, server_default="service")
    status: Mapped[states.RefundStatus] = mapped_column(Text, server_default="pending")
    amount: Mapped[int]
    currency: Mapped[str] = mapped_column(String(3))
    reason: Mapped[str | None] = mapped_column(String(500))
    requested_at: Mapped[datetime] = mapped_column(
        "asked_at", key="requested_at", server_default=func.now()
    )
    next_lookup_at: Mapped[datetime | None] = mapped_column("check_at", key="next_lookup_at")
    lookup_count: Mapped[int] = mapped_column(
        "checks", key="lookup_count", server_default=text("0")
    )
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    __table_args__ = (
        ForeignKeyConstraint(["payment_id", "user_id"], ["payments.id", "payments.user_id"]),
        CheckConstraint(f"amount BETWEEN 1 AND {MAX_AMOUNT}", "amount"),
        CheckConstraint(one_of("status", states.REFUND_STATUSES), "status"),
        CheckConstraint(one_of("origin", states.REFUND_ORIGINS), "origin"),
        CheckConstraint("check_at IS NOT NULL OR status <> 'pending'", "open_is_checked"),
        Index("ix_refunds_payment_id_id", "payment_id", text("id DESC")),
        # A refund made outside is written down once, however we hear of it.
        Index(UQ_REFUND_REFERENCE, "payment_id", "gateway_reference", unique=True),
        Index(
            "ix_refunds_lookup",
            "gateway",
            "next_lookup_at",
            postgresql_where=text("check_at IS NOT NULL"),
        ),
        Index("ix_refunds_open", "id", postgresql_where=text(OPEN_REFUND)),
    )


class Dispute(OfUser):
    """A shopper who asked their bank for the money back."""

    __tablename__ = "disputes"

    payment_id: Mapped[int] = mapped_column(index=True)
    gateway: Mapped[str]
    gateway_reference: Mapped[str]
    status: Mapped[str]
    amount: Mapped[int]
    currency: Mapped[str] = mapped_column(String(3))
    reason: Mapped[str]
    evidence_due_at: Mapped[datetime | None]  # until when the store may defend itself
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    __table_args__ = (
        ForeignKeyConstraint(["payment_id", "user_id"], ["payments.id", "payments.user_id"]),
        UniqueConstraint("gateway", "gateway_reference"),
        CheckConstraint(one_of("status", states.DISPUTE_STATUSES), "status"),
        Index("ix_disputes_created_at_id", "created_at", "id"),
        Index("ix_disputes_status_created_at_id", "status", "created_at", "id"),
        # For the list of the release before this one; the next one drops it.
        Index("ix_disputes_status_id", "status", text("id DESC")),
    )


class GatewayEvent(Base):
    """A webhook that a gateway sent us (the inbox): stored once, applied once."""

    __tablename__ = "gateway_events"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    gateway: Mapped[str]
    event_id: Mapped[str]
    # What the signature covers where it does not cover the event; see gateways/base.py.
    delivery_id: Mapped[str | None]
    type: Mapped[str]
    payment_id: Mapped[int | None] = mapped_column(index=True)
    user_id: Mapped[str | None] = mapped_column(String(255))  # the payment's
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)

    __table_args__ = (
        ForeignKeyConstraint(["payment_id", "user_id"], ["payments.id", "payments.user_id"]),
        CheckConstraint("payment_id IS NULL OR user_id IS NOT NULL", "user_id"),
        UniqueConstraint("gateway", "event_id"),
        Index("uq_gateway_events_gateway_delivery_id", "gateway", "delivery_id", unique=True),
    )


class Comparison(Base):
    """Until when the books of a gateway have been compared with ours, and when that is next."""

    __tablename__ = "comparisons"

    gateway: Mapped[str] = mapped_column(primary_key=True)
    compared_until: Mapped[datetime]
    next_at: Mapped[datetime]


class IdempotencyKey(OfUser):
    """A request that its sender may repeat, and the answer that every repeat gets."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255))
    fingerprint: Mapped[str]  # SHA-256 of method, path and JSON value
    # Who works on it, and until when others leave it alone. A worker that lost its ownership
    # cannot commit.
    owner: Mapped[str]
    owned_until: Mapped[datetime]
    # The money request that this one led to, once it was claimed.
    gateway_key: Mapped[str | None] = mapped_column(index=True)
    request_id: Mapped[str]
    status: Mapped[int | None]
    headers: Mapped[dict[str, str] | None] = mapped_column(JSONB(none_as_null=True))
    body: Mapped[bytes | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)

    __table_args__ = (
        UniqueConstraint("user_id", "key"),
        CheckConstraint("(status IS NULL) = (body IS NULL)", "answered"),
    )
