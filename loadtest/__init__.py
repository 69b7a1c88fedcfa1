"""Load on a running service, and what it says of it."""
