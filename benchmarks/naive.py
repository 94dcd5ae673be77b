"""The usual FastAPI service over the same tables, to compare with: sync everything, full ORM.

python -m benchmarks.naive <port>    with DATABASE_URL and SECRET_KEY
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from jose import jwt
from pydantic import BaseModel, ConfigDict
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from models import Order, PaymentMethod

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
    order = session.get(Order, order_id)
    if order is None or order.user_id != user:
        raise HTTPException(404)
    return order


@app.get("/orders", response_model=list[OrderOut])
def list_orders(session: SessionDep, user: User, limit: int = 50) -> Any:
    query = select(Order).where(Order.user_id == user).order_by(Order.id.desc()).limit(limit)
    return session.scalars(query).all()


@app.post("/orders", response_model=OrderOut, status_code=201)
def create_order(data: OrderIn, session: SessionDep, user: User) -> Any:
    if data.payment_method_id is not None:
        method = session.get(PaymentMethod, data.payment_method_id)
        if method is None or method.user_id != user:
            raise HTTPException(400)
    order = Order(**data.model_dump(), user_id=user)
    session.add(order)
    session.commit()
    session.refresh(order)
    return order


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
