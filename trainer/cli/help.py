"""The text of --help: all commands, or one with its flags and an example."""

import textwrap
from typing import Any

from trainer.cli.arguments import define_flags
from trainer.cli.commands import COMMANDS, FIELDS
from trainer.config.options import describe_valid

_WIDTH = 80


def help_text(command: str | None) -> str:
    """Return the help of a command, or of the program and its default command.

    Args:
      command: its name, or None.
    """
    lines = []
    if command is None:
        lines += ["usage: python -m trainer [COMMAND] [--flag=value ...]", "", "Commands:"]
        lines += [f"  {name:14} {each.purpose}" for name, each in COMMANDS.items()]
        lines += ["", "python -m trainer COMMAND --help shows the flags of a command.", ""]
        lines += ["Without a command it trains."]
        command = "train"
    else:
        chosen = COMMANDS[command]
        taken = f" {chosen.takes}..." if chosen.takes else ""
        lines += [f"usage: python -m trainer {command}{taken} [--flag=value ...]", ""]
        lines += [f"{command}: {chosen.purpose}", ""]
    lines += [f"Example: python -m trainer {COMMANDS[command].example}"]
    return "\n".join([*lines, *_describe_flags(command)])


def _describe_flags(command: str) -> list[str]:
    """Return the flags of a command by group, with meaning, range and default."""
    values = define_flags()
    groups: dict[str, list[str]] = {"General": []}
    for name in COMMANDS[command].flags:
        group = FIELDS[name].metadata["group"] if name in FIELDS else "General"
        valid = describe_valid(FIELDS[name]) if name in FIELDS else ""
        text = values[name].help + (f"; {valid}" if valid and "<=" in valid else "")
        groups.setdefault(group, []).extend(_entry(name, values[name].default, text))
    groups["General"] += _entry(
        "flagfile", None, "read flags from a file, one a line; what is given later wins"
    )
    return [line for name, entries in groups.items() for line in ["", f"{name}:", *entries]]


def _entry(name: str, default: Any, text: str) -> list[str]:
    """Return the lines of one flag."""
    shown = "unset" if default is None else "''" if default == "" else default
    shown = "none" if default == [] else shown
    first = f"  --{name} (default {shown})"
    return [
        first,
        *textwrap.wrap(text, _WIDTH, initial_indent="      ", subsequent_indent="      "),
    ]
