"""What is known: listeners in Redis, items in a snapshot."""
