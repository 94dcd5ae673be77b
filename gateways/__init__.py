"""Payment gateways behind one contract: `base` says what a gateway is, each other file is one.

Knows nothing of our models, of `crud` or of `schemas`.
"""
