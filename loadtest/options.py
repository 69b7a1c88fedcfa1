"""Types of command-line options, for argparse."""

import argparse
import math


def positive(text: str) -> float:
    """A finite number over 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number over 0, got {text}")
    return value


def count(text: str) -> int:
    """An integer over 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer over 0, got {text}")
    return value
