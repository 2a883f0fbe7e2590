"""How something of the user's own, such as a network, is named: a module or a file, and in it.

package.module:Network        nets/own.py:Network
"""

import os
import re

_WORD = r"[^\W\d]\w*"
_NAME = re.compile(rf"(?P<source>.+\.py|{_WORD}(\.{_WORD})*):(?P<attribute>{_WORD})")


def is_own(name: str) -> bool:
    """Return whether a name is that of something of the user's own, and not of a built-in."""
    return _NAME.fullmatch(name) is not None


def parts(name: str) -> tuple[str, str]:
    """Return the module or file, and what is meant in it, of a name that `is_own`."""
    match = _NAME.fullmatch(name)
    assert match is not None
    return match["source"], match["attribute"]


def absolute(name: str) -> str:
    """Return a name with the whole path of its file, so that it means the same in every folder."""
    if not is_own(name) or not parts(name)[0].endswith(".py"):
        return name
    path, attribute = parts(name)
    return f"{os.path.abspath(os.path.expanduser(path))}:{attribute}"


def short(name: str) -> str:
    """Return a name without the folders of its file, as it fits above a picture."""
    return os.path.basename(name)


def describe_form(attribute: str) -> str:
    """Return in words how something of the user's own is named.

    Args:
      attribute: the name that the examples have, such as "Network".
    """
    return f"package.module:{attribute} or path/file.py:{attribute}"
