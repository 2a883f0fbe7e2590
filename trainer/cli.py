"""The command line: absl flags to TrainConfig, the commands, the exit statuses."""

import dataclasses
import json
import logging
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable
from typing import Any

import absl.logging
from absl import flags

from trainer.config import TrainConfig
from trainer.errors import Interrupted, RunError, Stopped, UsageError
from trainer.processes import output, signals

if typing.TYPE_CHECKING:
    from trainer.run.job import Job

# The libraries behind the commands take seconds to import: each command imports what it uses, so
# that --help and a mistyped flag answer at once.

EXIT_DONE, EXIT_USAGE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 2, 75
EXIT_INTERRUPTED = 130  # as a shell reports SIGINT

# Flags that are no hyperparameters of a run.
_GENERAL_FLAGS = (
    "workdir",
    "dry_run",
    "allow_config_change",
    "devices",
    "find_lr_min",
    "find_lr_max",
    "find_lr_steps",
    "find_lr_ramp",
    "output",
)

_DEFAULT_WORKDIR = "runs/mnist"


def main(argv: list[str] | None = None) -> None:
    """Run one command and leave with its exit status.

    Args:
      argv: program name and arguments, sys.argv if None.
    """
    with signals.interruptible():
        output.protect()
        status = run(sys.argv if argv is None else argv)
        if (problem := output.problem()) is not None:
            print(f"error: standard output: {problem.strerror}", file=sys.stderr)
            status = status or EXIT_FAILED
    # Threads of a save that failed, and jax among several processes, may wait for minutes.
    signals.leave(status, at_once=status not in (EXIT_DONE, EXIT_STOPPED))


def run(argv: list[str]) -> int:
    """Run one command and return its exit status; errors end as one message on standard error.

    Args:
      argv: program name and arguments.

    Returns:
      0 done, 1 wrong usage, 2 the run failed, 75 stopped by a signal with a checkpoint saved.
    """
    try:
        values = _define_flags()
        command, *arguments = _parse(values, argv)
        if values.help:
            print(_help(values))
            return EXIT_DONE
        _log_to_stderr()
        given: dict[str, Any] = {name: values[name].value for name in _config_names()}
        config = TrainConfig(**given)
        return _COMMANDS[command](config, values, *arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except (Stopped, Interrupted) as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_status
    except Exception as error:
        from trainer.workdir import storage

        if not (storage.is_remote(values.workdir) and storage.is_outage(error)):
            raise
        remedy = storage.remedy(values.workdir)
        print(
            f"error: --workdir={values.workdir} does not answer: {storage.reason(error)}; "
            f"{remedy} and run the same command: older checkpoints are intact",
            file=sys.stderr,
        )
        return EXIT_FAILED


def _train(config: TrainConfig, values: flags.FlagValues) -> int:
    """Train, or resume, or say that the run is complete."""
    from trainer import processes
    from trainer.processes.cluster import find_cluster

    cluster = find_cluster(config.coordinator_address, config.num_processes, config.process_id)
    _configure_devices(config, cluster.num_processes if cluster else 1)
    from trainer.run import job, loop

    allowed = values.allow_config_change
    with processes.joined(cluster, _settings(config, values)):
        if not processes.is_first():
            logging.getLogger("trainer").setLevel(logging.WARNING)
        if not values.dry_run:
            loop.train(config, values.workdir, allowed)
            return EXIT_DONE
        planned = job.prepare(config, values.workdir, allowed)
        if processes.is_first():
            _show_plan(planned)
    return EXIT_DONE


def _show_plan(job: "Job") -> None:
    """Print a run as it is planned, and draw it."""
    from trainer.records import figures
    from trainer.run.job import describe, describe_schedule_in_full

    print(describe(job), file=sys.stderr)
    width = shutil.get_terminal_size().columns
    print(describe_schedule_in_full(job, width), file=sys.stderr)
    lengths = job.plan.num_steps, job.plan.steps_per_epoch
    picture = figures.draw_schedule(job.schedule, *lengths, job.workdir)
    print(f"the learning rate as planned: {picture}", file=sys.stderr)


# What processes that train together may be given differently.
_OWN = ("data_dir", "coordinator_address", "num_processes", "process_id")


def _settings(config: TrainConfig, values: flags.FlagValues) -> dict[str, Any]:
    """Return what processes that train together must be given alike."""
    return {name: values[name].value for name in ("workdir", "dry_run", "allow_config_change")} | {
        name: value for name, value in dataclasses.asdict(config).items() if name not in _OWN
    }


def _evaluate(config: TrainConfig, values: flags.FlagValues) -> int:
    """Print loss and accuracy of the newest checkpoint on the test split, as JSON."""
    _configure_devices(config)
    from trainer.commands import inspection

    print(json.dumps(inspection.evaluate(values.workdir, config)))
    return EXIT_DONE


def _inspect(config: TrainConfig, values: flags.FlagValues) -> int:
    """Print the newest checkpoint's place in the run, as JSON."""
    _configure_devices(dataclasses.replace(config, platform="cpu", num_cpu_devices=1))
    from trainer.commands import inspection

    print(json.dumps(inspection.inspect(values.workdir)))
    return EXIT_DONE


def _report(config: TrainConfig, values: flags.FlagValues) -> int:
    """Draw report.png again from the records; the run may be going on."""
    from trainer.records import figures

    print(figures.draw_report(values.workdir), file=sys.stderr)
    return EXIT_DONE


def _find_lr(config: TrainConfig, values: flags.FlagValues) -> int:
    """Suggest --lr_min, --lr_max and --steps_per_cycle from a learning-rate range test."""
    _configure_devices(config)
    from trainer.commands import find_lr

    suggestion = find_lr.find_lr(
        config,
        values.workdir,
        values.find_lr_min,
        values.find_lr_max,
        values.find_lr_steps,
        values.find_lr_ramp,
    )
    print(json.dumps(suggestion))
    return EXIT_DONE


def _verify_resume(config: TrainConfig, values: flags.FlagValues) -> int:
    """Prove on this machine that stopping and resuming changes nothing, bit for bit."""
    try:
        counts = [int(count) for count in values.devices] or [config.num_devices]
    except ValueError as error:
        raise UsageError(
            f"--devices={','.join(values.devices)}: valid: numbers of devices, such as 1,2,4,8"
        ) from error
    num_cpu_devices = config.num_cpu_devices or max(counts)
    _configure_devices(dataclasses.replace(config, num_cpu_devices=num_cpu_devices))
    from trainer.commands import verify_resume as verification

    comparisons = verification.verify_resume(config, counts)
    print(verification.report(comparisons), file=sys.stderr)
    return EXIT_DONE if verification.kept(comparisons) else EXIT_FAILED


def _predict(config: TrainConfig, values: flags.FlagValues, *files: str) -> int:
    """Print the digit in each image file (predict IMG...), as one JSON object a line."""
    if not files:
        raise UsageError("predict: no files given; valid: python -m trainer predict IMG...")
    _configure_devices(dataclasses.replace(config, num_cpu_devices=1))
    from trainer.commands.predict import inference

    status = EXIT_DONE
    for answer in inference.Predictor(values.workdir, config.platform).predict(files):
        if "error" in answer:
            status = EXIT_USAGE
            print(f"error: {answer['file']}: {answer['error']}", file=sys.stderr)
        else:
            print(json.dumps(answer), flush=True)
    return status


def _export(config: TrainConfig, values: flags.FlagValues) -> int:
    """Write the newest checkpoint's network as one file that runs with jax alone (--output)."""
    _configure_devices(dataclasses.replace(config, platform="cpu", num_cpu_devices=1))
    from trainer.commands import export

    print(json.dumps(export.export(values.workdir, values.output)))
    return EXIT_DONE


# Each is given the configuration, all flags, and what stands after its name.
_COMMANDS: dict[str, Callable[..., int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "inspect": _inspect,
    "report": _report,
    "find_lr": _find_lr,
    "verify_resume": _verify_resume,
    "predict": _predict,
    "export": _export,
}
_COMMANDS_WITH_FILES = ("predict",)


def _configure_devices(config: TrainConfig, num_processes: int = 1) -> None:
    """Set up jax before anything touches a device."""
    from trainer import devices

    if config.compilation_cache:
        devices.enable_compilation_cache()
    devices.configure(config.platform, config.num_cpu_devices, config.batch_size, num_processes)


def _config_names() -> list[str]:
    """Return the names of the fields of TrainConfig, which are those of their flags."""
    return [field.name for field in dataclasses.fields(TrainConfig)]


_DEFINE: dict[Any, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    int | None: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    float | None: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def _define_flags() -> flags.FlagValues:
    """Return one flag for each field of TrainConfig, and those that are no hyperparameters."""
    values = flags.FlagValues()
    for field in dataclasses.fields(TrainConfig):
        default: Any = field.default
        help_text, choices = field.metadata["help"], field.metadata["choices"]
        if choices:
            flags.DEFINE_enum(field.name, default, choices, help_text, flag_values=values)
        else:
            define = _DEFINE[typing.get_type_hints(TrainConfig)[field.name]]
            define(field.name, default, help_text, flag_values=values)
    flags.DEFINE_string(
        "workdir",
        _DEFAULT_WORKDIR,
        "folder of checkpoints and records, or gs://bucket/folder",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "dry_run",
        False,
        "print the plan, draw it to schedule.png in the workdir, and train nothing",
        flag_values=values,
    )
    flags.DEFINE_list(
        "allow_config_change",
        [],
        "fields, separated by commas, that may differ from those of the run that is resumed",
        flag_values=values,
    )
    flags.DEFINE_list(
        "devices",
        [],
        "for verify_resume: numbers of devices to change between, separated by commas",
        flag_values=values,
    )
    flags.DEFINE_float("find_lr_min", 1e-5, "for find_lr: the first rate", flag_values=values)
    flags.DEFINE_float(
        "find_lr_max",
        10.0,
        "for find_lr: the last rate; the test ends before where the loss diverges",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "find_lr_steps",
        600,
        "for find_lr: steps from the first rate to the last; more tell more and take longer",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "find_lr_ramp",
        "exponential",
        ["exponential", "linear"],
        "for find_lr: whether the rate rises by equal factors or by equal differences",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output",
        None,
        "for export: the file; unset: model.jaxexport in workdir",
        flag_values=values,
    )
    flags.DEFINE_bool("help", False, "show this text", short_name="h", flag_values=values)
    return values


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parse the flags into `values` and return the command and the files it is given."""
    try:
        command, *rest = values(argv)[1:] or ["train"]
    except flags.Error as error:
        raise UsageError(f"{error} (--help lists all flags)") from error
    if command not in _COMMANDS or (rest and command not in _COMMANDS_WITH_FILES):
        raise UsageError(
            f"unexpected argument {rest[0] if command in _COMMANDS else command!r}; valid: one of "
            f"the commands {', '.join(_COMMANDS)}, and flags as --name=value"
        )
    return [command, *rest]


def _help(values: flags.FlagValues) -> str:
    """Return all commands and flags, with defaults, in the order of TrainConfig."""
    lines = ["usage: python -m trainer [COMMAND] [--flag=value ...]", "", "Commands:"]
    lines += [f"  {name:15}{run.__doc__}" for name, run in _COMMANDS.items()]
    groups: dict[str, list[tuple[str, Any, str]]] = {
        "General": [(name, values[name].default, values[name].help) for name in _GENERAL_FLAGS]
        + [("flagfile", None, "read flags from a file, one a line; what comes later wins")]
    }
    for field in dataclasses.fields(TrainConfig):
        entry = (field.name, field.default, field.metadata["help"])
        groups.setdefault(field.metadata["group"], []).append(entry)
    for group, entries in groups.items():
        lines += ["", f"{group}:"]
        for name, default, text in entries:
            shown = "unset" if default is None else default if default != "" else "''"
            lines += [f"  --{name} (default {shown})"]
            lines += textwrap.wrap(text, 94, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _log_to_stderr() -> None:
    """Send the trainer's log lines to standard error, above a progress bar if there is one."""
    import tqdm

    class Handler(logging.Handler):
        """Writes plain lines that do not break a bar."""

        def emit(self, record: logging.LogRecord) -> None:
            """Write one line."""
            tqdm.tqdm.write(self.format(record), file=sys.stderr)

    # Orbax prints pages about a failed save, which the trainer reports in one line.
    absl.logging.set_verbosity(absl.logging.FATAL)
    logger = logging.getLogger("trainer")
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
