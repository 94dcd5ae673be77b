"""The sandbox gateway: a gateway of our own, with books of its own, for development and tests.

It is a gateway, not a mock: what it charged stands in its own tables, written in its own
transactions, whether or not the service ever heard the answer. Card numbers are exchanged for
tokens and forgotten; the outcome that a test number stands for is part of its token.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from config import Settings
from gateways.base import (
    Capabilities,
    ChangeRequest,
    Charge,
    ChargeRequest,
    Decline,
    Dispute,
    Gateway,
    GatewayEvent,
    LookUp,
    MethodInvalid,
    MethodRequest,
    NotDone,
    Refund,
    RefundLookUp,
    RefundRequest,
    SavedMethod,
    SignatureInvalid,
    Unknown,
)
from gateways.sandbox.signature import sign, verify
from gateways.sandbox.tables import account, charges, disputes, refunds, requests, webhooks

T = TypeVar("T")

# Test card -> outcome; every other valid number succeeds. Developers know them from Stripe.
TEST_CARDS: Final[dict[str, str]] = {
    "4242424242424242": "success",
    "4000000000000002": "generic_decline",
    "4000000000009995": "insufficient_funds",
    "4000000000000069": "expired_card",
    "4000000000000127": "incorrect_cvc",
    "4000000000000119": "processing_error",
    "4100000000000019": "fraudulent",
    "4000002760003184": "requires_action",
    "4000000000000259": "dispute",
    "4000000000005126": "refund_fails",
}
OUTCOMES: Final = {outcome: number for number, outcome in TEST_CARDS.items()}
DECLINES: Final = frozenset(
    {
        "generic_decline",
        "insufficient_funds",
        "expired_card",
        "incorrect_cvc",
        "processing_error",
        "fraudulent",
    }
)

AUTHORIZATION_LIFETIME = timedelta(days=7)  # what card schemes commonly honor
REFUND_FAILS_AFTER = timedelta(seconds=2)  # long enough to be seen pending
DISPUTE_OPENS_AFTER = timedelta(seconds=1)
DISPUTE_CLOSES_AFTER = timedelta(seconds=60)
LATE_WEBHOOK = timedelta(seconds=5)
REORDERED_WEBHOOK = timedelta(seconds=2)
WEBHOOK_RETRY = timedelta(seconds=1)

FAULTS: Final = frozenset(
    {
        "timeout_before_charge",
        "timeout_after_charge",
        "error_500",
        "error_after_charge",
        "duplicate_webhook",
        "late_webhook",
        "reordered_webhooks",
    }
)
SLOW: Final = "slow="


def parse_fault(value: str) -> str | None:
    """A Sandbox-Fault header as we know it, or None. `slow=` takes 0 to 120 seconds."""
    if value in FAULTS:
        return value
    if value.startswith(SLOW):
        seconds = value.removeprefix(SLOW)
        if seconds.isascii() and seconds.replace(".", "", 1).isdigit() and float(seconds) <= 120:
            return value
    return None


class SandboxGateway(Gateway):
    """A gateway that decides by test card, and does on demand what real ones do on bad days."""

    name = "sandbox"
    remote = False
    capabilities = Capabilities(
        payment_types=frozenset({"card", "paypal", "bank_account"}), card_numbers=True
    )

    def __init__(self, engine: sa.Engine, *, timeout: float) -> None:
        self.engine = engine
        self.timeout = timeout  # seconds that a caller waits, as with a gateway over the network

    @classmethod
    def build(cls, settings: Settings, engine: sa.Engine) -> SandboxGateway:
        return cls(engine, timeout=settings.gateway_timeout)

    # Methods ------------------------------------------------------------------------------------

    def save_method(self, request: MethodRequest) -> SavedMethod:
        """Tokens are stateless: `tok_<outcome>`, or `tok_<outcome>_<random>` for a number."""
        if request.payment_type != "card":
            shown = dict(request.details) or {"email": "s***@sandbox.example"}  # by vault token
            return SavedMethod(f"tok_success_{secrets.token_hex(8)}", shown, request.token)
        if request.card_number is not None:
            outcome = TEST_CARDS.get(request.card_number, "success")
            return SavedMethod(f"tok_{outcome}_{secrets.token_hex(8)}", dict(request.details))
        outcome = (request.token or "").removeprefix("tok_")
        if request.token != f"tok_{outcome}" or outcome not in OUTCOMES:
            raise MethodInvalid(
                "details.token",
                "token_unknown",
                "The sandbox knows the tokens " + ", ".join(f"tok_{name}" for name in OUTCOMES),
            )
        details = {
            "brand": "visa",
            "last4": OUTCOMES[outcome][-4:],
            "exp_month": 12,
            "exp_year": datetime.now(timezone.utc).year + 3,
            "cardholder_name": None,
        }
        return SavedMethod(f"tok_{outcome}", details, identity=f"tok_{outcome}")

    # Money --------------------------------------------------------------------------------------

    def charge(self, request: ChargeRequest) -> Charge:
        return self._with_fault(request.fault, lambda: self._charge(request))

    def _charge(self, request: ChargeRequest) -> Charge:
        with self.engine.begin() as connection:
            reference = f"ch_{secrets.token_hex(12)}"
            known = self._claim_key(connection, request.key, reference)
            if known is not None:
                return _charge(self._charge_row(connection, known))
            outcome = _outcome(request.token)
            values: dict[str, Any] = {"status": "captured", "amount_captured": request.amount}
            if outcome in DECLINES:
                values = {"status": "declined"}
            elif outcome == "requires_action":
                page = f"/sandbox/actions/{reference}"
                values = {
                    "status": "requires_action",
                    "redirect_url": (request.service_url or "").rstrip("/") + page,
                    "return_url": request.return_url,
                }
            elif not request.capture:
                values = _authorized()
            row = connection.execute(
                charges.insert()
                .values(
                    reference=reference,
                    order_id=request.order_id,
                    payment_id=request.payment_id,
                    idempotency_key=request.key,
                    amount=request.amount,
                    currency=request.currency,
                    outcome=outcome,
                    capture=request.capture,
                    **values,
                )
                .returning(*charges.c)
            ).one()
            self._announce_charge(connection, row, request.fault)
            return _charge(row)

    def capture(self, request: ChangeRequest) -> Charge:
        return self._with_fault(
            request.fault,
            lambda: self._change(
                request, {"status": "captured", "amount_captured": request.amount}, ("authorized",)
            ),
        )

    def void(self, request: ChangeRequest) -> Charge:
        return self._with_fault(
            request.fault,
            lambda: self._change(
                request,
                {"status": "voided", "capture_before": None, "redirect_url": None},
                ("authorized", "requires_action"),
            ),
        )

    def _change(
        self, request: ChangeRequest, values: Mapping[str, Any], allowed: tuple[str, ...]
    ) -> Charge:
        with self.engine.begin() as connection:
            known = self._claim_key(connection, request.key, request.reference)
            row = self._charge_row(connection, request.reference, lock=True)
            if known is None:
                if row.status not in allowed:
                    raise NotDone(f"the charge is {row.status}")
                row = self._update(connection, request.reference, **values)
                self._announce_charge(connection, row, request.fault)
            return _charge(row)

    def refund(self, request: RefundRequest) -> Refund:
        return self._with_fault(request.fault, lambda: self._refund(request))

    def _refund(self, request: RefundRequest) -> Refund:
        with self.engine.begin() as connection:
            reference = f"re_{secrets.token_hex(12)}"
            known = self._claim_key(connection, request.key, reference)
            if known is not None:
                return self._refund_state(connection, known)
            charge = self._charge_row(connection, request.reference, lock=True)
            spent: int = connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(refunds.c.amount), 0)).where(
                    refunds.c.charge == charge.reference, refunds.c.status != "failed"
                )
            ).scalar_one()
            if charge.status != "captured" or spent + request.amount > charge.amount_captured:
                raise NotDone("the refund is more than what is left of the charge")
            fails = charge.outcome == "refund_fails"
            connection.execute(
                refunds.insert().values(
                    reference=reference,
                    charge=charge.reference,
                    refund_id=request.refund_id,
                    amount=request.amount,
                    status="pending" if fails else "succeeded",
                    fails_at=sa.func.now() + REFUND_FAILS_AFTER if fails else None,
                )
            )
            self._announce_refund(connection, reference, request.fault)
            return self._refund_state(connection, reference)

    # Questions ----------------------------------------------------------------------------------

    def look_up(self, query: LookUp) -> Charge | None:
        with self.engine.begin() as connection:
            known = self._fence_key(connection, query.key)
            return None if known is None else _charge(self._charge_row(connection, known))

    def look_up_refund(self, query: RefundLookUp) -> Refund | None:
        with self.engine.begin() as connection:
            known = self._fence_key(connection, query.key)
            return None if known is None else self._refund_state(connection, known)

    def books(self, order_id: int | None = None) -> list[dict[str, Any]]:
        """Every charge that was made or declined, oldest first, with its refunds."""
        query = sa.select(*charges.c).order_by(charges.c.created_at, charges.c.reference)
        if order_id is not None:
            query = query.where(charges.c.order_id == order_id)
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
            of_charge: dict[str, list[dict[str, Any]]] = {row.reference: [] for row in rows}
            given_back = connection.execute(
                sa.select(*refunds.c)
                .where(refunds.c.charge.in_(of_charge))
                .order_by(refunds.c.created_at, refunds.c.reference)
            )
            for refund in given_back:
                of_charge[refund.charge].append(
                    {
                        "reference": refund.reference,
                        "amount": refund.amount,
                        "status": refund.status,
                    }
                )
        return [
            {
                "reference": row.reference,
                "order_id": row.order_id,
                "payment_id": row.payment_id,
                "idempotency_key": row.idempotency_key,
                "amount": row.amount,
                "currency": row.currency,
                "status": row.status,
                "amount_captured": row.amount_captured,
                "amount_refunded": sum(
                    refund["amount"]
                    for refund in of_charge[row.reference]
                    if refund["status"] == "succeeded"
                ),
                "refunds": of_charge[row.reference],
                "created_at": row.created_at,
            }
            for row in rows
        ]

    # The shopper's page -------------------------------------------------------------------------

    def action(self, reference: str) -> sa.Row[Any] | None:
        """The charge behind a redirect page; its reference is the secret that leads there."""
        with self.engine.connect() as connection:
            return connection.execute(
                sa.select(*charges.c).where(charges.c.reference == reference)
            ).one_or_none()

    def answer_action(self, reference: str, *, approve: bool) -> sa.Row[Any] | None:
        """What the shopper said on the page. Only the first answer counts."""
        with self.engine.begin() as connection:
            row = connection.execute(
                sa.select(*charges.c).where(charges.c.reference == reference).with_for_update()
            ).one_or_none()
            if row is None or row.status != "requires_action":
                return row
            if not approve:
                values: dict[str, Any] = {"status": "declined", "outcome": "authentication_failed"}
            elif row.capture:
                values = {"status": "captured", "amount_captured": row.amount}
            else:
                values = _authorized()
            row = self._update(connection, reference, **values)
            self._announce_charge(connection, row)
            return row

    # What time does -----------------------------------------------------------------------------

    def tick(self) -> int:
        """Expire authorizations, fail refunds and close disputes whose time has come."""
        with self.engine.begin() as connection:
            expired = connection.execute(
                charges.update()
                .where(charges.c.status == "authorized", charges.c.capture_before < sa.func.now())
                .values(status="voided")
                .returning(*charges.c)
            ).all()
            for row in expired:
                self._announce_charge(connection, row)
            failed = connection.scalars(
                refunds.update()
                .where(refunds.c.status == "pending", refunds.c.fails_at < sa.func.now())
                .values(status="failed")
                .returning(refunds.c.reference)
            ).all()
            for reference in failed:
                self._announce_refund(connection, reference)
            closed = connection.execute(
                disputes.update()
                .where(disputes.c.status == "open", disputes.c.closes_at < sa.func.now())
                .values(status="won")
                .returning(*disputes.c)
            ).all()
            for dispute in closed:
                charge = self._charge_row(connection, dispute.charge)
                self._announce(
                    connection, charge, "dispute.closed", {"dispute": _dispute(dispute, charge)}
                )
            return len(expired) + len(failed) + len(closed)

    # Webhooks -----------------------------------------------------------------------------------

    def due_webhooks(self, limit: int = 20) -> list[tuple[int, dict[str, str], bytes]]:
        """Signed webhooks that are due and not delivered: (id, headers, body)."""
        secret = self._webhook_secret()
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.select(webhooks.c.id, webhooks.c.payload)
                .where(webhooks.c.delivered_at.is_(None), webhooks.c.due_at <= sa.func.now())
                .order_by(webhooks.c.due_at, webhooks.c.id)
                .limit(limit)
            ).all()
        signed = []
        for row in rows:
            body = json.dumps(row.payload, separators=(",", ":")).encode()
            signed.append((row.id, sign(secret, body, int(time.time())), body))
        return signed

    def delivered(self, webhook_id: int) -> None:
        """The service has taken this webhook; it is not sent again."""
        with self.engine.begin() as connection:
            connection.execute(
                webhooks.update()
                .where(webhooks.c.id == webhook_id)
                .values(delivered_at=sa.func.now())
            )

    def postpone(self, webhook_id: int) -> None:
        """The service did not take this webhook; it is sent again a little later."""
        with self.engine.begin() as connection:
            connection.execute(
                webhooks.update()
                .where(webhooks.c.id == webhook_id)
                .values(due_at=sa.func.now() + WEBHOOK_RETRY)
            )

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> GatewayEvent:
        verify(self._webhook_secret(), headers.get("sandbox-signature", ""), body, int(time.time()))
        try:
            payload = json.loads(body)
            charge, refund, dispute = (payload.get(key) for key in ("charge", "refund", "dispute"))
            return GatewayEvent(
                id=payload["id"],
                type=payload["type"],
                payment_id=payload["payment_id"],
                reference=payload["reference"],
                charge=Charge(
                    **{
                        **charge,
                        "capture_before": charge["capture_before"]
                        and datetime.fromisoformat(charge["capture_before"]),
                        "decline": charge["decline"] and Decline(**charge["decline"]),
                    }
                )
                if charge
                else None,
                refund=Refund(**refund) if refund else None,
                refund_id=payload.get("refund_id"),
                dispute=Dispute(**dispute) if dispute else None,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise SignatureInvalid from None

    def _webhook_secret(self) -> str:
        with self.engine.connect() as connection:
            secret: str = connection.execute(sa.select(account.c.webhook_secret)).scalar_one()
            return secret

    # Inside -------------------------------------------------------------------------------------

    def _with_fault(self, fault: str | None, work: Callable[[], T]) -> T:
        """Do the work, or lose the question or the answer the way a network does."""
        if fault in ("timeout_before_charge", "error_500"):
            raise Unknown("no answer" if fault == "timeout_before_charge" else "HTTP 500")
        result = work()
        if fault in ("timeout_after_charge", "error_after_charge"):
            raise Unknown("no answer" if fault == "timeout_after_charge" else "HTTP 500")
        if fault is not None and fault.startswith(SLOW):
            seconds = float(fault.removeprefix(SLOW))
            time.sleep(min(seconds, self.timeout))
            if seconds >= self.timeout:
                raise Unknown("no answer in time")
        return result

    def _claim_key(self, connection: sa.Connection, key: str, reference: str) -> str | None:
        """None for a new key; the reference behind a known one. A fenced key raises NotDone."""
        new = connection.scalar(
            insert(requests)
            .values(key=key, reference=reference)
            .on_conflict_do_nothing()
            .returning(requests.c.key)
        )
        if new is not None:
            return None
        row = connection.execute(sa.select(*requests.c).where(requests.c.key == key)).one()
        if row.fenced:
            raise NotDone("this key was given up before it was used")
        return str(row.reference)

    def _fence_key(self, connection: sa.Connection, key: str) -> str | None:
        """The reference behind a key; a key that is not known can never be used any more."""
        connection.execute(insert(requests).values(key=key, fenced=True).on_conflict_do_nothing())
        row = connection.execute(sa.select(*requests.c).where(requests.c.key == key)).one()
        return None if row.fenced else str(row.reference)

    def _charge_row(
        self, connection: sa.Connection, reference: str, *, lock: bool = False
    ) -> sa.Row[Any]:
        query = sa.select(*charges.c).where(charges.c.reference == reference)
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is None:
            raise NotDone("no such charge")
        return row

    def _update(self, connection: sa.Connection, reference: str, **values: Any) -> sa.Row[Any]:
        return connection.execute(
            charges.update()
            .where(charges.c.reference == reference)
            .values(**values)
            .returning(*charges.c)
        ).one()

    def _refund_state(self, connection: sa.Connection, reference: str) -> Refund:
        row = connection.execute(
            sa.select(*refunds.c, charges.c.currency)
            .join(charges, charges.c.reference == refunds.c.charge)
            .where(refunds.c.reference == reference)
        ).one()
        return Refund(reference, row.status, row.amount, row.currency)

    def _announce_charge(
        self, connection: sa.Connection, row: sa.Row[Any], fault: str | None = None
    ) -> None:
        if row.status == "captured":
            # Real gateways tell each step, and not always in order.
            created = asdict(_charge(row)) | {"status": "processing", "amount_captured": 0}
            late = REORDERED_WEBHOOK if fault == "reordered_webhooks" else None
            self._announce(connection, row, "charge.created", {"charge": created}, delay=late)
        state = {"charge": asdict(_charge(row))}
        delay = LATE_WEBHOOK if fault == "late_webhook" else None
        times = 2 if fault == "duplicate_webhook" else 1
        self._announce(connection, row, f"charge.{row.status}", state, delay=delay, times=times)
        if row.status == "captured" and row.outcome == "dispute":
            dispute = connection.execute(
                disputes.insert()
                .values(
                    reference=f"dp_{secrets.token_hex(12)}",
                    charge=row.reference,
                    status="open",
                    closes_at=sa.func.now() + DISPUTE_CLOSES_AFTER,
                )
                .returning(*disputes.c)
            ).one()
            self._announce(
                connection,
                row,
                "dispute.opened",
                {"dispute": _dispute(dispute, row)},
                delay=DISPUTE_OPENS_AFTER,
            )

    def _announce_refund(
        self, connection: sa.Connection, reference: str, fault: str | None = None
    ) -> None:
        row = connection.execute(
            sa.select(*refunds.c).where(refunds.c.reference == reference)
        ).one()
        self._announce(
            connection,
            self._charge_row(connection, row.charge),
            f"refund.{row.status}",
            {
                "refund": asdict(self._refund_state(connection, reference)),
                "refund_id": row.refund_id,
            },
            delay=LATE_WEBHOOK if fault == "late_webhook" else None,
            times=2 if fault == "duplicate_webhook" else 1,
        )

    def _announce(
        self,
        connection: sa.Connection,
        charge: sa.Row[Any],
        event_type: str,
        state: Mapping[str, Any],
        *,
        delay: timedelta | None = None,
        times: int = 1,
    ) -> None:
        payload = {
            "id": f"evt_{secrets.token_hex(12)}",
            "type": event_type,
            "payment_id": charge.payment_id,
            "reference": charge.reference,
            **state,
        }
        due = sa.func.now() + (delay or timedelta())
        row = {"payload": json.loads(json.dumps(payload, default=_iso))}
        for _ in range(times):
            connection.execute(webhooks.insert().values(due_at=due, **row))


def _outcome(token: str) -> str:
    name = token.removeprefix("tok_")
    return next((known for known in OUTCOMES if name == known or name.startswith(f"{known}_")), "")


def _authorized() -> dict[str, Any]:
    return {"status": "authorized", "capture_before": sa.func.now() + AUTHORIZATION_LIFETIME}


def _charge(row: sa.Row[Any]) -> Charge:
    return Charge(
        reference=row.reference,
        status=row.status,
        amount=row.amount,
        currency=row.currency,
        amount_captured=row.amount_captured,
        capture_before=row.capture_before,
        redirect_url=row.redirect_url,
        decline=Decline(row.outcome, row.outcome) if row.status == "declined" else None,
    )


def _dispute(dispute: sa.Row[Any], charge: sa.Row[Any]) -> dict[str, Any]:
    return asdict(
        Dispute(dispute.reference, dispute.status, charge.amount, charge.currency, "fraudulent")
    )


def _iso(value: Any) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
