"""Small stateful doubles of gateways: real HTTP servers with books of their own."""
