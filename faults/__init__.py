"""What goes wrong in production, done on purpose to a running server, and what became of its requests."""
