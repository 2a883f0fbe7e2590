"""How a run or a command ends other than well: one message each, no traceback, one exit status."""

from typing import Any


class UsageError(ValueError):
    """Wrong input: the message names flag, value and what would be valid."""

    exit_status = 1


class RunError(RuntimeError):
    """The run failed: the message says what happened and what to do."""

    exit_status = 2


class Stopped(Exception):  # noqa: N818 - it is no error
    """A signal asked the run to stop, and the same command resumes it from a checkpoint."""

    exit_status = 75

    def __init__(self, message: str, result: Any = None):
        """Take the message, and what the run has come to."""
        super().__init__(message)
        self.result = result


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A signal ended the command before there was anything to save."""

    exit_status = 130
