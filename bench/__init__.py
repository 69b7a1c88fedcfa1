"""Compares this service with what a user might choose instead."""
