"""Logs, and later metrics and traces. Imports nothing of ours."""
