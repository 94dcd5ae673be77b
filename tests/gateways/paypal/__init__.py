"""The PayPal adapter, over real HTTP, against its double; and against answers out of a can."""
