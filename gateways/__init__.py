"""Payment gateways behind one contract, `base`. Each package is an adapter.

Nothing here knows our models, `crud` or `schemas`.
"""
