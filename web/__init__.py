"""How a request is read and answered, whatever resource it is about."""
