"""Masks what may be shown in part only."""


def mask_email(email: str) -> str:
    """The first letter and the domain of an address: a***@example.com."""
    local, _, domain = email.rpartition("@")
    return f"{local[:1]}***@{domain}"
