"""A configuration as a flagfile: lines of --name=value that the command line reads back."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from trainer.config.train_config import LENGTH_FIELDS, OF_A_START, TrainConfig

# Another machine has other ones, and none of them changes what a run is.
_OF_A_MACHINE = ("platform", "num_devices", "num_cpu_devices")


def flagfile(
    config: TrainConfig,
    comments: Sequence[str],
    first: Sequence[str] = (),
    omitted: Collection[str] = (),
    workdir: object = None,
) -> str:
    """Return the text of a flagfile with all that the result depends on, and what else was given.

    Fields that are unset have no line.

    Args:
      config: what the flags are to say.
      comments: lines to begin with.
      first: names of the fields that a reader looks for.
      omitted: names of fields that are left to the default.
      workdir: of the run that the flagfile starts; None: the user is to say.
    """
    values = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata["trajectory"] or getattr(config, field.name) != field.default
    }
    order = [*first, *(name for name in values if name not in first)]
    lines = [f"# {line}" for line in comments]
    lines += [_line(name, values[name]) for name in order if name not in omitted]
    if workdir is not None:
        lines.append(_line("workdir", workdir))
    return "".join(f"{line}\n" for line in lines if line)


def flagfile_of_run(config: TrainConfig, changes: Sequence[str] = ()) -> str:
    """Return the text of a flagfile with which another run, in another workdir, is the same one.

    What was given about processes has no line, and what was given about the devices is only a
    comment: the other run takes the devices that it finds.

    Args:
      config: of the run, resolved.
      changes: what was changed while it trained, in words.
    """
    default = TrainConfig()
    devices = [
        _line(name, getattr(config, name))
        for name in _OF_A_MACHINE
        if getattr(config, name) != getattr(default, name)
    ]
    comments = ["The flags of this run; with another --workdir they train it again."]
    comments += [f"Changed {change}: below are the values since then." for change in changes]
    comments += [f"On these devices: {' '.join(devices)}"] if devices else []
    # Resolved, num_steps alone says how long; how many steps a call takes suits the devices.
    omitted = {*LENGTH_FIELDS, *OF_A_START, *_OF_A_MACHINE, "steps_per_call"} - {"num_steps"}
    return flagfile(config, comments, omitted=omitted)


def _line(name: str, value: Any) -> str:
    """Return the line of a flag, or "" for one that is unset."""
    if value is None:
        return ""
    text = str(value)  # Of a float: the shortest that is read back as the same one.
    # A flagfile is text, and read line by line, without the space at the ends of lines.
    is_text = text.encode(errors="ignore").decode() == text
    if not is_text or text != text.rstrip() or len(text.splitlines()) > 1:
        return f"# no line of a flagfile can hold --{name}={text!r}"
    return f"--{name}={text}"


def without_byte_order_marks(words: Sequence[str]) -> list[str]:
    """Return the words of flagfiles without the mark that some editors put first in a file.

    Args:
      words: arguments, as absl has read them: it takes a comment after a mark for an argument.
    """
    found = []
    for word in words:
        line = word.removeprefix("\ufeff").strip() if word.startswith("\ufeff") else word
        if line is word or not (line == "" or line.startswith(("#", "//"))):
            found.append(line)
    return found
