"""The proof that nobody is charged twice and nothing is lost, whatever dies and when.

`python cli.py prove` runs shoppers against real processes that are killed at every step of
claim, call, settle, then compares both sets of books. Nothing of this runs in the service.
"""
