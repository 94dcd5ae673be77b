"""Background roles. Each does what is due once, and returns how much it did."""
