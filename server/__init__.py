"""Runs TorchServe: starts it, watches it, reports its state, and drains it at the end."""
