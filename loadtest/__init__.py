"""Load tests of a running service, with Locust."""
