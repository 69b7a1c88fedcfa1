"""Other ways to serve the same model, to measure against."""
