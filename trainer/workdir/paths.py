"""What a user gives as a path, as a path that the system knows."""

import os

from trainer.errors import UsageError, check_utf8


def expand(flag: str, path: str) -> str:
    """Return a path with the home folder in place of "~"; one in a bucket stays.

    Args:
      flag: that it was given with, for the message.
      path: as the user gave it.

    Raises:
      UsageError: it is empty, the home folder is not known, or it, or the current folder that it
        begins in, is not UTF-8.
    """
    if not path:
        raise UsageError(f"--{flag}= is empty; use the name of a folder or file, such as runs/a")
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        user = path.partition("/")[0]
        raise UsageError(
            f"--{flag}={path}: there is no home folder {user} here (HOME is not set); use a path "
            "that begins with /, or ./ for a name that begins with ~"
        )
    check_utf8(flag, expanded)
    return expanded
