"""Runs TorchServe: starts it, watches it, reports its state, and drains it at the end."""

__version__ = "0.1.0"
