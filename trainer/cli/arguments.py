"""The flags: defined from TrainConfig, and parsed by absl."""

import dataclasses
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from trainer.cli.commands import COMMANDS, FIELDS
from trainer.cli.mistakes import explain, unexpected
from trainer.config import LENGTH_FIELDS, TrainConfig
from trainer.config.flagfiles import without_byte_order_marks
from trainer.errors import UsageError
from trainer.paths import expand

DEFAULT_WORKDIR = "runs/mnist"

_DEFINE: dict[Any, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    int | None: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    float | None: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a command is given.

    Attributes:
      command: its name.
      command_given: whether it was named, and is not only the default.
      files: what stands after the name.
      config: the hyperparameters; the default where nothing was given.
      given: the fields of `config` that were given.
      workdir: folder of the run.
      options: every flag that is no hyperparameter, by name.
      help: whether only help is asked for.
      version: whether only the version is asked for.
    """

    command: str
    command_given: bool
    files: tuple[str, ...]
    config: TrainConfig
    given: frozenset[str]
    workdir: str
    options: dict[str, Any]
    help: bool = False
    version: bool = False


def parse(argv: Sequence[str]) -> Arguments:
    """Return the command that an argument list asks for.

    What is given later wins: in a flagfile, on the command line, and among the flags that say how
    long to train. A flag of another command is refused; in a flagfile it is passed over, so that
    one file serves all commands.

    Args:
      argv: program name and arguments.

    Raises:
      UsageError: a command, flag or value is not valid; the message names it and what would be.
    """
    values = define_flags()
    try:
        expanded = without_byte_order_marks(
            values.read_flags_from_files(list(argv[1:]), force_gnu=True)
        )
        words = values([argv[0], *expanded])[1:]
    # Beside its own errors absl raises a ValueError here and there.
    except (flags.Error, ValueError) as error:
        raise UsageError(explain(error, values)) from error
    command = words[0] if words else "train"
    if command not in COMMANDS:
        raise UsageError(unexpected(command, argv, COMMANDS, "command"))
    if words[1:] and not COMMANDS[command].takes:
        raise UsageError(unexpected(words[1], argv, (), "argument"))
    typed = _typed(argv)
    if not (values.help or values.version):
        _check_flags_of(command, typed)
    given = {name for name in FIELDS if values[name].present} & set(COMMANDS[command].flags)
    _let_later_win(given, expanded, typed)
    chosen: dict[str, Any] = {name: values[name].value for name in given}
    config = TrainConfig(**chosen)
    options = {name: values[name].value for name in values if name not in FIELDS}
    if options["output"] is not None:
        options["output"] = expand("output", options["output"])
    return Arguments(
        command=command,
        command_given=bool(words),
        files=tuple(words[1:]),
        config=config,
        given=frozenset(given),
        workdir=expand("workdir", values.workdir),
        options=options,
        help=values.help,
        version=values.version,
    )


def define_flags() -> flags.FlagValues:
    """Return one flag for each field of TrainConfig, and those that are no hyperparameters."""
    values = flags.FlagValues()
    types = typing.get_type_hints(TrainConfig)
    for name, field in FIELDS.items():
        # A word to choose is checked by TrainConfig, as from Python.
        _DEFINE[types[name]](name, field.default, field.metadata["help"], flag_values=values)
    for define, name, default, text in _OPTIONS:
        define(name, default, text, flag_values=values)
    flags.DEFINE_enum(
        "find_lr_ramp",
        "exponential",
        ["exponential", "linear"],
        "whether the rate rises by equal factors (exponential) or by equal differences (linear)",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "params",
        "last",
        ["last", "average", "ema"],
        "which parameters: the last, their average over the ends of cycles, or the moving average",
        flag_values=values,
    )
    flags.DEFINE_bool("help", False, "show this text", short_name="h", flag_values=values)
    flags.DEFINE_bool("version", False, "show the version", flag_values=values)
    return values


_OPTIONS: tuple[tuple[Callable[..., Any], str, Any, str], ...] = (
    (
        flags.DEFINE_string,
        "workdir",
        DEFAULT_WORKDIR,
        "folder of checkpoints and records, or gs://bucket/folder",
    ),
    (
        flags.DEFINE_bool,
        "dry_run",
        False,
        "print the plan, draw it to schedule.png in the workdir, and train nothing",
    ),
    (
        flags.DEFINE_list,
        "allow_config_change",
        [],
        "fields, separated by commas, that may differ from those of the run that is resumed",
    ),
    (
        flags.DEFINE_list,
        "devices",
        [],
        "numbers of devices to change between, separated by commas",
    ),
    (
        flags.DEFINE_list,
        "target",
        [],
        "accelerators to compile for, separated by commas, such as v5e:2x4 or h100:8",
    ),
    (flags.DEFINE_float, "find_lr_min", 1e-5, "the first rate"),
    (
        flags.DEFINE_float,
        "find_lr_max",
        10.0,
        "the last rate; the test ends before where the loss diverges",
    ),
    (
        flags.DEFINE_integer,
        "find_lr_steps",
        600,
        "steps from the first rate to the last; more tell more and take longer",
    ),
    (
        flags.DEFINE_string,
        "checkpoint",
        "newest",
        "newest, best (of a run with --keep_best), or a step",
    ),
    (
        flags.DEFINE_integer,
        "ensemble",
        0,
        "let the checkpoints at so many last ends of cycles answer together, by the mean of their "
        "probabilities; 0: one answers",
    ),
    (
        flags.DEFINE_string,
        "output",
        None,
        "the file that is written; unset: model.jaxexport in workdir (export), compare.png in the "
        "current folder (compare)",
    ),
    (
        flags.DEFINE_string,
        "run_token",
        "",
        "a secret that all processes of the run must know; unset: that of TRAINER_RUN_TOKEN",
    ),
    (flags.DEFINE_bool, "json", False, "one JSON object, also on a terminal"),
)


def _typed(argv: Sequence[str]) -> set[str]:
    """Return the flags that stand on the command line itself, not in a flagfile."""
    names = set()
    for word in argv[1:]:
        if word == "--":
            break
        if match := re.match(r"--?(\w+)", word):
            name = match[1]
            bare = name[2:] if name.startswith("no") and name not in FIELDS else name
            names.add(bare if bare in FIELDS else name)
    return names


def _check_flags_of(command: str, typed: set[str]) -> None:
    """Refuse flags that other commands have and this one has not."""
    everything = {name for each in COMMANDS.values() for name in each.flags}
    for name in sorted(typed & everything - set(COMMANDS[command].flags)):
        owners = [each for each, owner in COMMANDS.items() if name in owner.flags]
        raise UsageError(
            f"--{name} is a flag of {' and '.join(owners)}, not of {command}; "
            f"python -m trainer {command} --help lists those of {command}"
        )


def _let_later_win(given: set[str], expanded: Sequence[str], typed: set[str]) -> None:
    """Drop what something that was given later takes the place of."""
    order = [match[1] for word in expanded if (match := re.match(r"--?(\w+)", word))]
    lengths = [name for name in order if name in LENGTH_FIELDS and name in given]
    given -= set(lengths) - set(lengths[-1:])
    # A flagfile's length of a cycle must not win over the number of cycles that is typed.
    if "cycles_per_epoch" in typed and "steps_per_cycle" not in typed:
        given.discard("steps_per_cycle")
