"""The two ways a command ends badly. Both reach the user as one message without a traceback."""


class UsageError(ValueError):
    """Wrong input: the message names flag, value and what would be valid. Exit status 1."""


class RunError(RuntimeError):
    """The run failed: the message says what happened and what to do. Exit status 2."""
