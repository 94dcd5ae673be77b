"""The usual FastAPI service over the same tables, to compare with: sync everything, full ORM.

It does what a first version does: it checks, writes, and answers. It has no history, no
Idempotency-Keys and no webhooks, and the gateway that it charges is a function that returns at
once. Its pool is as large as the thread pool, without which it stalls at more than 15 connections.

python -m benchmarks.naive <port> <workers>    with DATABASE_URL and SECRET_KEY
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from jose import jwt
from pydantic import BaseModel, ConfigDict
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from models import Order, Payment, PaymentMethod, Refund

make_session = sessionmaker(create_engine(os.environ["DATABASE_URL"], pool_size=40))
app = FastAPI()
bearer = HTTPBearer()


def get_session() -> Iterator[Session]:
    session = make_session()
    try:
        yield session
    finally:
        session.close()


def get_user(credentials: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> str:
    claims = jwt.decode(credentials.credentials, os.environ["SECRET_KEY"], algorithms=["HS256"])
    return str(claims["sub"])


SessionDep = Annotated[Session, Depends(get_session)]
User = Annotated[str, Depends(get_user)]


class OrderIn(BaseModel):
    product_id: str
    quantity: int
    total_amount: int
    currency: str = "USD"
    payment_method_id: int | None = None


class OrderOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    user_id: str
    product_id: str
    quantity: int
    total_amount: int
    currency: str
    status: str
    payment_method_id: int | None
    created_at: datetime
    updated_at: datetime


@app.get("/orders/{order_id}", response_model=OrderOut)
def get_order(order_id: int, session: SessionDep, user: User) -> Any:
    order = session.get(Order, (user, order_id))
    if order is None:
        raise HTTPException(404)
    return order


@app.get("/orders", response_model=list[OrderOut])
def list_orders(session: SessionDep, user: User, limit: int = 50) -> Any:
    query = select(Order).where(Order.user_id == user).order_by(Order.id.desc()).limit(limit)
    return session.scalars(query).all()


@app.post("/orders", response_model=OrderOut, status_code=201)
def create_order(data: OrderIn, session: SessionDep, user: User) -> Any:
    if data.payment_method_id is not None:
        method = session.get(PaymentMethod, (user, data.payment_method_id))
        if method is None or not method.is_active:
            raise HTTPException(400)
    order = Order(**data.model_dump(), user_id=user)
    session.add(order)
    session.commit()
    session.refresh(order)
    return order


class CardIn(BaseModel):
    card_number: str
    exp_month: int
    exp_year: int


class MethodIn(BaseModel):
    payment_type: Literal["card"]
    details: CardIn


class MethodOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    user_id: str
    payment_type: str
    details: dict[str, Any]
    is_default: bool
    created_at: datetime
    updated_at: datetime


@app.post("/payment-methods", response_model=MethodOut, status_code=201)
def save_card(data: MethodIn, session: SessionDep, user: User) -> Any:
    card = data.details
    fingerprint = hashlib.sha256(card.card_number.encode()).hexdigest()
    known = select(PaymentMethod).where(
        PaymentMethod.user_id == user,
        PaymentMethod.fingerprint == fingerprint,
        PaymentMethod.is_active,
    )
    if session.scalars(known).first() is not None:
        raise HTTPException(409)
    method = PaymentMethod(
        user_id=user,
        payment_type=data.payment_type,
        gateway="sandbox",
        gateway_token=_ask_gateway("tok"),
        fingerprint=fingerprint,
        details={"last4": card.card_number[-4:], "exp_month": card.exp_month},
    )
    session.add(method)
    session.commit()
    session.refresh(method)
    return method


class PaymentOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    order_id: int
    payment_method_id: int
    status: str
    amount: int
    amount_captured: int
    amount_refunded: int
    currency: str
    created_at: datetime
    updated_at: datetime


@app.post("/orders/{order_id}/payments", response_model=PaymentOut, status_code=201)
def charge(order_id: int, session: SessionDep, user: User) -> Any:
    order = session.get(Order, (user, order_id))
    if order is None:
        raise HTTPException(404)
    if order.status != "pending":
        raise HTTPException(409)
    payment = Payment(
        order_id=order.id,
        user_id=user,
        payment_method_id=order.payment_method_id,
        gateway="sandbox",
        gateway_key=secrets.token_hex(16),
        amount=order.total_amount,
        currency=order.currency,
        capture_method="automatic",
        next_lookup_at=datetime.now(timezone.utc),
    )
    session.add(payment)
    session.commit()  # before the gateway is asked
    payment.amount_captured = payment.amount
    payment.gateway_reference = _ask_gateway("ch")
    payment.status = "captured"
    payment.next_lookup_at = None
    order.status = "paid"
    session.commit()
    session.refresh(payment)
    return payment


class RefundIn(BaseModel):
    amount: int


class RefundOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    payment_id: int
    status: str
    amount: int
    currency: str
    created_at: datetime


@app.post("/payments/{payment_id}/refunds", response_model=RefundOut, status_code=201)
def refund(payment_id: int, data: RefundIn, session: SessionDep, user: User) -> Any:
    payment = session.get(Payment, (user, payment_id), with_for_update=True)
    if payment is None:
        raise HTTPException(404)
    if data.amount > payment.amount_captured - payment.refund_reserved:
        raise HTTPException(409)
    refund = Refund(
        user_id=user,
        payment_id=payment.id,
        gateway="sandbox",
        gateway_key=secrets.token_hex(16),
        amount=data.amount,
        currency=payment.currency,
        next_lookup_at=datetime.now(timezone.utc),
    )
    session.add(refund)
    session.commit()  # before the gateway is asked
    refund.gateway_reference = _ask_gateway("re")
    refund.status = "succeeded"
    refund.next_lookup_at = None
    payment.amount_refunded += data.amount
    payment.status = "partially_refunded"
    session.commit()
    session.refresh(refund)
    return refund


def _ask_gateway(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


@app.get("/readyz")
def ready() -> dict[str, str]:
    return {"status": "ready"}


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.naive:app",
        host="127.0.0.1",
        port=int(sys.argv[1]),
        workers=int(sys.argv[2]),
        log_level="warning",
    )
