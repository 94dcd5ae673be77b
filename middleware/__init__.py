"""One plain ASGI class per file, and the limits of each connection. Knows no resource."""
