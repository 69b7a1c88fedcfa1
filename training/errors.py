"""What every expected failure of this package has in common."""


class TrainingError(Exception):
    """A command failed for a reason that its user can do something about; the message says what."""
