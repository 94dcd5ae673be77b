"""What several test modules need: factories and helpers, no tests."""
