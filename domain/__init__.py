"""The words and rules of money. No I/O, and nothing of ours is imported here."""
