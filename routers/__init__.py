"""HTTP only: parse, call one thing, answer. One file per resource."""
