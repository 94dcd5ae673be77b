"""What the previous release says to the database; `python -m tests.releases.capture` writes it."""
