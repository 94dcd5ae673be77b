"""The contract of gateways, run against every adapter and every double of a gateway."""
