"""Background roles. Each is a function that does what is due once and says how much it did."""
