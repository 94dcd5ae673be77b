"""What may be shown of what must not be stored."""

from __future__ import annotations


def mask_email(email: str) -> str:
    """Its first letter and its domain: a***@example.com."""
    local, _, domain = email.rpartition("@")
    return f"{local[:1]}***@{domain}"
