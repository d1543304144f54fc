"""The error of a command line that makes no sense."""


class UsageError(Exception):
    """Arguments that can't be used together, or don't say enough; the message is a sentence."""
