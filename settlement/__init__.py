"""The engine under the use cases: what is sent to a gateway, and what its answers change."""
