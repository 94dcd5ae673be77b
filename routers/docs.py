"""`/docs` and `/redoc`, with every asset served by the service itself."""

from __future__ import annotations

from fastapi import FastAPI

from config import Settings

DESCRIPTION = """x"""
TAGS = [
    {
        "name": "Payment methods",
        "description": "Cards, wallets and accounts that users have saved.",
    },
]


def install(app: FastAPI, settings: Settings) -> None: ...


def announce(settings: Settings) -> None: ...
