"""One plain ASGI class per file; nothing here knows of orders or payments."""
