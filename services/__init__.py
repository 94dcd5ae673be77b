"""What happens to money, and the events that tell of it. Owns the commits."""
