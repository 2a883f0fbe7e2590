"""What a user gives as a path, as a path that the system knows."""

import os

from trainer.errors import UsageError


def expand(flag: str, path: str) -> str:
    """Return a path with the home folder in place of "~"; one in a bucket stays.

    Args:
      flag: that it was given with, for the message.
      path: as the user gave it.

    Raises:
      UsageError: it is empty, the home folder is not known, or it, or the current folder that it
        begins in, is not UTF-8, as Orbax and TFDS need.
    """
    if not path:
        raise UsageError(f"--{flag}= is empty; use the name of a folder or file, such as runs/a")
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        user = path.partition("/")[0]
        hint = " (HOME is not set)" if user == "~" else ""
        raise UsageError(
            f"--{flag}={path}: there is no home folder {user} here{hint}; use a path "
            "that begins with /, or ./ for a name that begins with ~"
        )
    try:
        (expanded if "://" in expanded else os.path.abspath(expanded)).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(error.object).decode(errors="backslashreplace")
        raise UsageError(
            f"--{flag}: the name {shown} is not UTF-8; use another folder, or rename it"
        ) from error
    return expanded
