"""One plain ASGI class per file, and what guards the wire below; nothing knows of orders here."""
