"""The conformance kit: proves that a gateway adapter keeps the contract of `gateways/base.py`."""
