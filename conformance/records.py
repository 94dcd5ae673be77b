"""What the kit reads in the service's tables, to compare it with what the gateway was sent."""

from __future__ import annotations

import sqlalchemy as sa

from gateways.base import ChargeLookup, ChargeRequest


def charge_lookup(engine: sa.Engine, payment_id: int) -> ChargeLookup:
    """The look-up of a payment that the gateway answered: by its reference, nothing is resent."""
    query = sa.text(
        "SELECT p.*, m.gateway_token, m.gateway_customer FROM payments p"
        " JOIN payment_methods m ON m.id = p.payment_method_id WHERE p.id = :id"
    )
    with engine.connect() as connection:
        row = connection.execute(query, {"id": payment_id}).one()
    request = ChargeRequest(
        key=row.gateway_key,
        payment_id=row.id,
        order_id=row.order_id,
        amount=row.amount,
        currency=row.currency,
        token=row.gateway_token,
        capture=row.capture_method == "automatic",
        return_url=row.return_url or "",
        customer=row.gateway_customer,
    )
    return ChargeLookup(request, row.gateway_reference, row.created_at, resend=False)


def saved_token(engine: sa.Engine, method_id: int) -> tuple[str, str | None]:
    """The gateway's token of a saved payment method, and its id of the user."""
    query = sa.text("SELECT gateway_token, gateway_customer FROM payment_methods WHERE id = :id")
    with engine.connect() as connection:
        row = connection.execute(query, {"id": method_id}).one()
    return row.gateway_token, row.gateway_customer


def has_open_operation(engine: sa.Engine, payment_id: int) -> bool:
    """Whether a capture, a void or a completion of the payment has no outcome yet."""
    query = sa.text("SELECT operation FROM payments WHERE id = :id")
    with engine.connect() as connection:
        return connection.execute(query, {"id": payment_id}).scalar_one() is not None


def gateway_keys(engine: sa.Engine) -> set[str]:
    """Every idempotency key that the service has stored for a request to its gateway."""
    query = sa.text(
        "SELECT gateway_key FROM payments UNION SELECT gateway_key FROM refunds"
        " UNION SELECT gateway_key FROM idempotency_keys WHERE gateway_key IS NOT NULL"
        " UNION SELECT operation_key FROM payments WHERE operation_key IS NOT NULL"
    )
    with engine.connect() as connection:
        return set(connection.execute(query).scalars())


def dump(engine: sa.Engine) -> str:
    """Everything that is in the database, as text."""
    tables = sa.text(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    with engine.connect() as connection:
        return "\n".join(
            str(row)
            for table in connection.execute(tables).scalars()
            for row in connection.execute(sa.text(f"SELECT t::text FROM {table} t")).scalars()
        )
