"""Compares this service with what a user might choose instead, and with its other versions."""
