"""What is said of flags and words that cannot be: what was given, and what would be valid."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from trainer.cli.commands import COMMANDS, FIELDS
from trainer.config.options import describe_valid


def explain(error: flags.Error | ValueError, values: flags.FlagValues) -> str:
    """Return what is wrong with a flag, and what would be valid.

    Args:
      error: of absl, which knows little of it.
      values: all flags.
    """
    if isinstance(error, UnicodeDecodeError):
        return "--flagfile cannot be read (it is no text); use a file of flags, one a line"
    if with_value := re.match(r"(--?no(\w+)=.*) does not take", str(error), flags=re.DOTALL):
        name = with_value[2]
        return f"{with_value[1]} is not valid; use --{name} or --no{name}"
    if isinstance(error, flags.UnrecognizedFlagError):
        near = _nearest(error.flagname, list(values))
        return f"unknown flag --{error.flagname}{near}; python -m trainer --help lists all flags"
    if isinstance(error, flags.CantOpenFlagFileError):
        cause = str(error).rpartition("] ")[2].splitlines()[0]
        return f"--flagfile cannot be read ({cause}); use a file of flags, one a line"
    match = re.match(r"flag --(\w+)=(.*?): ", str(error), flags=re.DOTALL)
    if match is None:
        missing = re.search(r"Missing value for flag --?(\w+)|(flagfile) with no", str(error))
        if missing:
            name = missing[1] or missing[2]
            return f"--{name} has no value; use --{name}=VALUE"
        return f"{error}; python -m trainer --help lists all flags"
    name, value = match[1], match[2]
    return f"--{name}={value} is not valid; use {_valid(name, values)}"


def _valid(name: str, values: flags.FlagValues) -> str:
    """Return what a flag can be, in words."""
    kind = values[name].flag_type()
    if kind == "bool":
        return f"--{name} or --no{name}"
    if isinstance(values[name], flags.EnumFlag):
        parser: Any = values[name].parser
        return " or ".join(parser.enum_values)
    words = {"int": "a whole number", "float": "a number"}.get(kind, "a value")
    valid = describe_valid(FIELDS[name]) if name in FIELDS else ""
    return f"{words}, {valid}" if valid else words


def unexpected(word: str, argv: Sequence[str], known: Iterable[str], kind: str) -> str:
    """Return what is wrong with a word that is no flag.

    Args:
      word: such as "trian".
      argv: program name and arguments, among which it stands.
      known: words that would be right in its place.
      kind: what it was taken for: "command" or "argument".
    """
    before = list(argv)[list(argv).index(word) - 1] if word in argv else ""
    flag = before.lstrip("-")
    if before.startswith("--") and flag in FIELDS and FIELDS[flag].type in (bool, "bool"):
        return f"unexpected argument {word!r} after {before}; use {before} or --no{flag}"
    if "--" in argv and word.startswith("-"):
        return f"unexpected {kind} {word!r}: what follows -- is no flag; leave out the --"
    near = _nearest(word, known)
    return (
        f"unexpected {kind} {word!r}{near}; use one of the commands {', '.join(COMMANDS)}, and "
        "flags as --name=value"
    )


def _nearest(word: str, known: Iterable[str]) -> str:
    """Return a question with the nearest of some known words, or nothing if none is near."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
