"""The statuses and rules of money. No I/O; imports nothing else of the service."""
