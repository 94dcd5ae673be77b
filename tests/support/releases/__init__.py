"""What the previous release says to the database.

`python -m tests.support.releases.capture` writes it.
"""
