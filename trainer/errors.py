"""How a command ends other than well. Each reaches the user as one message without a traceback."""


class UsageError(ValueError):
    """Wrong input: the message names flag, value and what would be valid. Exit status 1."""


class RunError(RuntimeError):
    """The run failed: the message says what happened and what to do. Exit status 2."""


class Stopped(Exception):  # noqa: N818 - it is no error
    """A signal asked the run to stop, and it can go on from a checkpoint. Exit status 75."""
